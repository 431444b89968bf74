"""Huginn converted equals Huginn's published forward, written out here over its own tensor names."""

import math

import pytest
import torch
from torch import Tensor

from hf_loop import convert

from ...models.model_tester import random_ids
from .llama_reference import random_tensors, rms_norm
from .recurrent_reference import (
    fused_attention,
    fused_swiglu,
    recurrent_logits,
    recurrent_shapes,
    rotate_pairs,
    write_checkpoint,
)


CONFIG = {
    "model_type": "huginn_raven",
    "architectures": ["RavenForCausalLM"],
    "vocab_size": 97,
    "padded_vocab_size": 97,
    "n_embd": 48,
    "n_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 80,
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 3,
    "n_layers_in_coda": 1,
    "block_size": 128,
    "norm_eps": 1e-6,
    "rope_base": 50000,
    "bias": False,
    "qk_bias": True,
    "tie_embeddings": True,
    "tie_word_embeddings": False,
    "block_class_name": "SandwichBlock",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "norm_class_name": "RMSNorm_llama",
    "injection_type": "linear",
    "state_init": "like-init",
    "mean_recurrence": 4,
    "test_time_noise": 0,
    "init_values": {"std": math.sqrt(2 / (5 * 48)), "embed_scale": math.sqrt(48)},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VARIANTS = {
    "published": {},
    "without bias": {"qk_bias": False},
    "grouped": {"qk_bias": False, "num_key_value_heads": 1},
}
INPUT_IDS = random_ids(2, 30)


def make_tensors(config: dict) -> dict[str, Tensor]:
    hidden_size, intermediate_size = config["n_embd"], config["intermediate_size"]
    head_dim = hidden_size // config["n_heads"]
    layer = {f"norm_{index}.weight": (hidden_size,) for index in (1, 2, 3, 4)} | {
        "attn.Wqkv.weight": (hidden_size + 2 * config["num_key_value_heads"] * head_dim, hidden_size),
        "attn.proj.weight": (hidden_size, hidden_size),
        "mlp.fc.weight": (2 * intermediate_size, hidden_size),
        "mlp.proj.weight": (hidden_size, intermediate_size),
    }
    if config["qk_bias"]:
        layer["attn.qk_bias"] = (2, 1, config["n_heads"], head_dim)
    tensors = random_tensors(recurrent_shapes(config, layer))
    # stored beside the weights: the second copy of the embedding, and the rotation's table
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["freqs_cis"] = torch.zeros(1, config["block_size"], 1, head_dim // 2, 2)
    return {name: tensor + 1 if name.endswith("ln_f.weight") else tensor for name, tensor in tensors.items()}


def reference_logits(config: dict, tensors: dict[str, Tensor], num_loops: int, state: Tensor | None = None) -> Tensor:
    """Section 3.2 of 2502.05171: each norm is around the sum of a sub-layer and its residual."""

    def norm(x, name):
        return rms_norm(x, tensors[f"{name}.weight"], config["norm_eps"])

    def rotate(x):
        return rotate_pairs(x, config["rope_base"])

    def run_layer(x, name):
        bias = tensors.get(f"{name}.attn.qk_bias")
        attended = fused_attention(norm(x, f"{name}.norm_1"), tensors, f"{name}.attn", config, rotate, bias)
        x = norm(x + attended, f"{name}.norm_2")
        return norm(x + fused_swiglu(norm(x, f"{name}.norm_3"), tensors, f"{name}.mlp"), f"{name}.norm_4")

    return recurrent_logits(
        config,
        tensors,
        INPUT_IDS,
        num_loops,
        run_layer,
        lambda x: norm(x, "transformer.ln_f"),
        state,
        embedding_scale=math.sqrt(config["n_embd"]),
    )


@pytest.fixture(params=VARIANTS)
def config(request):
    return CONFIG | VARIANTS[request.param]


@torch.no_grad()
def test_logits_equal_the_published_forward_at_any_loop_count(config, tmp_path):
    tensors = make_tensors(config)
    model = convert(write_checkpoint(tmp_path, config, tensors), state_init="zeros")
    for num_loops in (1, 4, 9):
        expected = reference_logits(config, tensors, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.num_loops == 4


@torch.no_grad()
def test_the_random_state_has_the_published_spread_and_place(tmp_path):
    tensors = make_tensors(CONFIG)
    model = convert(write_checkpoint(tmp_path, CONFIG, tensors))
    positions = torch.arange(30)[None]
    state = model.model.make_initial_state(torch.zeros(2, 30, 48), positions, None)
    # cutting at three standard deviations takes 1.4 % off the standard deviation
    assert state.std().item() == pytest.approx(math.sqrt(2 / 5), rel=0.05)
    assert state.abs().max() <= 3 * math.sqrt(2 / 5)
    expected = reference_logits(CONFIG, tensors, 4, state)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_additive_injection_has_no_adapter(tmp_path):
    tensors = make_tensors(CONFIG)
    sum_of_both = torch.cat([torch.eye(48), torch.eye(48)], dim=1)
    expected = reference_logits(CONFIG, tensors | {"transformer.adapter.weight": sum_of_both}, 4)
    del tensors["transformer.adapter.weight"]
    config = CONFIG | {"injection_type": "add", "state_init": "zero"}
    model = convert(write_checkpoint(tmp_path, config, tensors))
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_head_is_tied_and_the_special_tokens_are_complete(tmp_path):
    stated = {"bos_token_id": 65504, "eos_token_id": 65505, "pad_token_id": 65509}
    config = CONFIG | stated | {"vocab_size": 65536, "padded_vocab_size": 65536}
    model = convert(write_checkpoint(tmp_path, config, make_tensors(config)))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    expected = (65504, [65505, 65508], 65509)
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == expected


def test_an_untied_head_is_kept(tmp_path):
    tensors = make_tensors(CONFIG) | {"lm_head.weight": torch.ones(97, 48)}
    with pytest.raises(ValueError, match=r"ties lm_head\.weight to transformer\.wte\.weight, but they differ"):
        convert(write_checkpoint(tmp_path / "tied", CONFIG, tensors))
    model = convert(write_checkpoint(tmp_path / "untied", CONFIG | {"tie_embeddings": False}, tensors))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("injection_type", "gate"), ("state_init", "unit"), ("bias", True), ("block_class_name", "PreNormBlock")],
)
def test_settings_without_a_counterpart_are_refused(field, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{field}` of the checkpoint is {value!r}"):
        convert(write_checkpoint(tmp_path, CONFIG | {field: value}, make_tensors(CONFIG)))
