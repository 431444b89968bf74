"""Ouro converted equals Ouro's published forward, written out here over its own tensor names."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import hf_loop
from hf_loop.retrofitting.converters import ouro

from ...models.model_tester import random_ids
from .llama_reference import attention, converted_model, linear, llama_shapes, random_tensors, rms_norm, swiglu


CONFIG = {
    "model_type": "ouro",
    "architectures": ["OuroForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "layer_types": ["full_attention"] * 3,
    "total_ut_steps": 4,
    "early_exit_threshold": 1.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
INPUT_IDS = random_ids(2, 40)


def make_tensors(config: dict) -> dict[str, Tensor]:
    shapes = llama_shapes(config)
    hidden_size = config["hidden_size"]
    for index in range(config["num_hidden_layers"]):
        for name in ("input_layernorm_2", "post_attention_layernorm_2"):
            shapes[f"model.layers.{index}.{name}.weight"] = (hidden_size,)
    shapes |= {"model.early_exit_gate.weight": (1, hidden_size), "model.early_exit_gate.bias": (1,)}
    return random_tensors(shapes)


def reference_states(config: dict, tensors: dict[str, Tensor], input_ids: Tensor, num_loops: int) -> list[Tensor]:
    """Section 3 of 2510.25741: sandwich norms, and the final norm at the end of every loop."""

    def norm(x, name):
        return rms_norm(x, tensors[f"{name}.weight"], config["rms_norm_eps"])

    hidden_states = tensors["model.embed_tokens.weight"][input_ids]
    states = []
    for _ in range(num_loops):
        for index in range(config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            attended = attention(
                norm(hidden_states, f"{layer}.input_layernorm"), tensors, f"{layer}.self_attn", config
            )
            hidden_states = hidden_states + norm(attended, f"{layer}.input_layernorm_2")
            mixed = swiglu(norm(hidden_states, f"{layer}.post_attention_layernorm"), tensors, f"{layer}.mlp")
            hidden_states = hidden_states + norm(mixed, f"{layer}.post_attention_layernorm_2")
        hidden_states = norm(hidden_states, "model.norm")
        states.append(hidden_states)
    return states


def reference_logits(config: dict, tensors: dict[str, Tensor], input_ids: Tensor, num_loops: int) -> Tensor:
    return linear(reference_states(config, tensors, input_ids, num_loops)[-1], tensors, "lm_head")


@pytest.mark.parametrize("num_key_value_heads", [4, 2])
@torch.no_grad()
def test_logits_equal_the_published_forward_at_any_loop_count(num_key_value_heads):
    config = CONFIG | {"num_key_value_heads": num_key_value_heads}
    tensors = make_tensors(config)
    model = converted_model(ouro, config, tensors)
    for num_loops in (1, 4, 7):
        expected = reference_logits(config, tensors, INPUT_IDS, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(INPUT_IDS).logits, model(INPUT_IDS, num_loops=4).logits, atol=0, rtol=0)


@pytest.mark.parametrize("num_loops", [1, 4, 6])
@torch.no_grad()
def test_cached_equals_uncached(num_loops):
    model = converted_model(ouro, CONFIG, make_tensors(CONFIG))
    expected = model(INPUT_IDS, num_loops=num_loops, use_cache=False).logits
    cache = DynamicCache(config=model.config.with_num_loops(num_loops))
    pieces = INPUT_IDS.split([30, 1, 9], dim=1)
    logits = [model(piece, num_loops=num_loops, past_key_values=cache).logits for piece in pieces]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_a_checkpoint_on_disk_is_converted_saved_and_loaded(tmp_path):
    tensors = make_tensors(CONFIG)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "model.safetensors")
    model = hf_loop.convert(tmp_path)
    expected = reference_logits(CONFIG, tensors, INPUT_IDS, 4)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert loaded.generation_config.eos_token_id == model.config.eos_token_id
    assert torch.equal(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)
    assert torch.equal(loaded(INPUT_IDS, num_loops=6).logits, model(INPUT_IDS, num_loops=6).logits)
    assert torch.equal(loaded.model.exit_gate.weight, model.model.exit_gate.weight)


def test_the_published_special_tokens_are_corrected():
    config = ouro.convert_config(CONFIG)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, [2, 0])
    # a copy whose ids were corrected before keeps them
    config = ouro.convert_config(CONFIG | {"bos_token_id": 5, "eos_token_id": [2, 7], "pad_token_id": 7})
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (7, 5, [2, 0, 7])


def test_generation_stops_at_the_end_of_a_turn():
    tensors = make_tensors(CONFIG)
    model = converted_model(ouro, CONFIG, tensors)
    # the token that would come first is made the end of a turn
    first = model.generate(INPUT_IDS[:1], max_new_tokens=1, do_sample=False)[0, -1].item()
    rows = tensors["lm_head.weight"]
    rows[torch.tensor([2, first])] = rows[torch.tensor([first, 2])]
    model = converted_model(ouro, CONFIG, tensors)
    assert model.generate(INPUT_IDS[:1], max_new_tokens=5, do_sample=False)[0, INPUT_IDS.shape[1] :].tolist() == [2]


@torch.no_grad()
def test_the_exit_gate_gives_the_probabilities_of_the_original():
    tensors = make_tensors(CONFIG)
    model = converted_model(ouro, CONFIG, tensors)
    assert model.config.exit_gate
    outputs = model(INPUT_IDS, num_loops=3, output_loop_states=True)
    expected = [
        torch.sigmoid(linear(state, tensors, "model.early_exit_gate")[..., 0])
        for state in reference_states(CONFIG, tensors, INPUT_IDS, 3)
    ]
    for state, probability in zip(outputs.loop_states, expected, strict=True):
        torch.testing.assert_close(model.model.exit_gate_probability(state), probability, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_exit_gate_drives_exits():
    tensors = make_tensors(CONFIG)
    model = converted_model(ouro, CONFIG, tensors)
    # first tokens, which read no others: 3.2 of 2510.25741, the first loop at which the probabilities add up to more
    input_ids = torch.arange(3, 90)[:, None]
    states = torch.stack(reference_states(CONFIG, tensors, input_ids, 4))
    goes_on = 1 - torch.sigmoid(linear(states, tensors, "model.early_exit_gate")[..., 0])
    for threshold in (0.5, 0.8):
        has_exited = 1 - goes_on.cumprod(0) > threshold
        expected = torch.where(has_exited[:3].any(0), has_exited.int().argmax(0) + 1, 4)
        outputs = model(input_ids, exit_criterion="gate", exit_threshold=threshold)
        assert torch.equal(outputs.exit_loops, expected)
        assert len(expected.unique()) > 1
    generated = model.generate(INPUT_IDS, exit_criterion="gate", exit_threshold=1.0, max_new_tokens=5)
    assert torch.equal(generated, model.generate(INPUT_IDS, max_new_tokens=5))


@torch.no_grad()
def test_a_copy_without_the_gate_is_converted_without(tmp_path):
    tensors = make_tensors(CONFIG)
    expected = reference_logits(CONFIG, tensors, INPUT_IDS, 4)
    tensors = {name: tensor for name, tensor in tensors.items() if "early_exit_gate" not in name}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "model.safetensors")
    model = hf_loop.convert(tmp_path)
    assert not model.config.exit_gate
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_sliding_window", True), ("early_exit_threshold", 0.9), ("early_exit_step", 2)],
)
def test_settings_without_a_counterpart_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        ouro.convert_config(CONFIG | {field: value})


def test_missing_tensors_are_named():
    tensors = make_tensors(CONFIG)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        ouro.convert_state_dict(CONFIG, tensors)


def test_only_ouro_is_recognized():
    assert ouro.recognizes(CONFIG)
    assert not ouro.recognizes({"model_type": "llama"})
