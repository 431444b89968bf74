"""Nanbeige4.2 converted equals its published forward, written out here over its own tensor names."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

import hf_loop
from hf_loop.retrofitting.converters import nanbeige

from ...models.model_tester import random_ids
from .llama_reference import attention, converted_model, linear, llama_shapes, random_tensors, rms_norm, swiglu


# heads are wider than the hidden size divided by their number, as in the published 3B
CONFIG = {
    "model_type": "nanbeige",
    "architectures": ["NanbeigeForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "kv_channels": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 70000000,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "num_loops": 2,
    "loop_loss_weights": [],
    "skip_loop_final_norm": False,
    "qk_layernorm": False,
    "emb_neighbor_num": None,
    "insert_ngram_layer_idx": [],
    "bos_token_id": 95,
    "eos_token_id": 96,
    "pad_token_id": 0,
}
INPUT_IDS = random_ids(2, 40)


def make_tensors(config: dict) -> dict[str, Tensor]:
    shapes = llama_shapes(config)
    biased = {"attention_bias": "self_attn", "mlp_bias": "mlp"}
    for field, part in biased.items():
        if config.get(field):
            names = [name for name in shapes if f".{part}." in name]
            shapes |= {name.replace(".weight", ".bias"): shapes[name][:1] for name in names}
    return random_tensors(shapes)


def reference_logits(config: dict, tensors: dict[str, Tensor], input_ids: Tensor, num_loops: int) -> Tensor:
    """Llama's layers `num_loops` times, with the final norm after every loop or after the last alone."""

    def norm(x, name):
        return rms_norm(x, tensors[f"{name}.weight"], config["rms_norm_eps"])

    hidden_states = tensors["model.embed_tokens.weight"][input_ids]
    for loop in range(num_loops):
        for index in range(config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            normed = norm(hidden_states, f"{layer}.input_layernorm")
            hidden_states = hidden_states + attention(normed, tensors, f"{layer}.self_attn", config)
            normed = norm(hidden_states, f"{layer}.post_attention_layernorm")
            hidden_states = hidden_states + swiglu(normed, tensors, f"{layer}.mlp")
        if not config["skip_loop_final_norm"] or loop == num_loops - 1:
            hidden_states = norm(hidden_states, "model.norm")
    return linear(hidden_states, tensors, "lm_head")


@pytest.mark.parametrize(
    "changes",
    [{}, {"skip_loop_final_norm": True}, {"attention_bias": True, "mlp_bias": True}],
    ids=["published", "norm after the last loop", "biases"],
)
@torch.no_grad()
def test_logits_equal_the_published_forward_at_any_loop_count(changes):
    config = CONFIG | changes
    tensors = make_tensors(config)
    model = converted_model(nanbeige, config, tensors)
    for num_loops in (1, 2, 5):
        expected = reference_logits(config, tensors, INPUT_IDS, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(INPUT_IDS).logits, model(INPUT_IDS, num_loops=2).logits)


@pytest.mark.parametrize("num_loops", [1, 2, 4])
@torch.no_grad()
def test_cached_equals_uncached(num_loops):
    model = converted_model(nanbeige, CONFIG, make_tensors(CONFIG))
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
    expected = reference_logits(CONFIG, tensors, INPUT_IDS, 2)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "converted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    assert loaded.generation_config.eos_token_id == model.config.eos_token_id
    assert torch.equal(loaded(INPUT_IDS).logits, model(INPUT_IDS).logits)


def test_tied_embeddings_need_no_head():
    config = CONFIG | {"tie_word_embeddings": True}
    tensors = make_tensors(config)
    del tensors["lm_head.weight"]
    names = nanbeige.convert_state_dict(config, dict(tensors))
    assert "lm_head.weight" not in names
    assert nanbeige.convert_config(config).tie_word_embeddings


def test_the_loss_weights_of_earlier_loops_set_the_loop_count():
    assert nanbeige.convert_config(CONFIG).num_loops == 2
    assert nanbeige.convert_config(CONFIG | {"loop_loss_weights": [0.2, 0.3]}).num_loops == 3


def test_rotary_scaling_of_either_spelling_reaches_the_backbone():
    config = nanbeige.convert_config(CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    rotary = config.backbone_config.rope_parameters
    assert (rotary["rope_type"], rotary["factor"], rotary["rope_theta"]) == ("linear", 2.0, 70000000)
    rope_parameters = {"rope_type": "default", "rope_theta": 5000.0}
    config = nanbeige.convert_config({**CONFIG, "rope_theta": None, "rope_parameters": rope_parameters})
    assert config.backbone_config.rope_parameters["rope_theta"] == 5000.0


def test_stored_rotary_frequencies_are_superfluous():
    tensors = make_tensors(CONFIG)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    nanbeige.convert_state_dict(CONFIG, tensors)
    assert tensors == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qk_layernorm", True),
        ("emb_neighbor_num", 3),
        ("insert_ngram_layer_idx", [0]),
        ("enable_double_loop_split", True),
        ("loop_share_kv", True),
        ("enable_hyper_connection", True),
        ("enable_mhc", True),
        ("enable_depth_attention", True),
    ],
)
def test_options_that_change_the_computation_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        nanbeige.convert_config(CONFIG | {field: value})


def test_missing_tensors_are_named():
    tensors = make_tensors(CONFIG)
    del tensors["model.layers.2.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight"):
        nanbeige.convert_state_dict(CONFIG, tensors)


def test_the_unlooped_nanbeige_is_not_recognized():
    assert nanbeige.recognizes(CONFIG)
    assert not nanbeige.recognizes({"model_type": "nanbeige"})
