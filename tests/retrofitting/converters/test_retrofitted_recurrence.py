"""A retrofitted checkpoint converted equals the published forward, written out here over its own tensor names."""

import math
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hf_loop import convert

from ...models.model_tester import random_ids
from .llama_reference import random_tensors, rms_norm
from .recurrent_reference import fused_attention, fused_swiglu, recurrent_logits, recurrent_shapes, write_checkpoint


CONFIG = {
    "model_type": "huginn_raven",
    "architectures": ["RavenForCausalLM"],
    "vocab_size": 97,
    "padded_vocab_size": 97,
    "n_embd": 48,
    "n_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 80,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 2,
    "block_size": 4096,
    "max_position_embeddings": 2048,
    "norm_eps": 1e-5,
    # Huginn's fields that nothing reads
    "rope_base": 500000.0,
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "rope_theta": 10000.0,
    "bias": False,
    "qk_bias": False,
    "tie_embeddings": False,
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "injection_type": "linear",
    "state_init": "like-init",
    "mean_recurrence": 3,
    # of Huginn's width, as in the published checkpoints
    "init_values": {"std": math.sqrt(2 / (5 * 5280)), "embed_scale": 1.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # short, so that the test's few positions feel it (8192 in Llama-3.2)
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "TinyLlama": {},
    "Llama-3.2": {"rope_theta": 500000.0, "rope_scaling": LLAMA_3_SCALING, "max_position_embeddings": 131072},
    "OLMo-2": {"rope_theta": 500000.0, "norm_eps": 1e-6, "num_key_value_heads": 3},
}
HUGINN_TOKEN_IDS = {"bos_token_id": 65504, "eos_token_id": 65505, "pad_token_id": 65509}
INPUT_IDS = random_ids(2, 30)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


def make_tensors(variant: str, config: dict) -> dict[str, Tensor]:
    hidden_size, intermediate_size = config["n_embd"], config["intermediate_size"]
    num_keys = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "norm_1.weight": (hidden_size,),
        "norm_2.weight": (hidden_size,),
        "attn.Wqkv.weight": (hidden_size + 2 * num_keys, hidden_size),
        "attn.proj.weight": (hidden_size, hidden_size),
        "mlp.fc.weight": (2 * intermediate_size, hidden_size),
        "mlp.proj.weight": (hidden_size, intermediate_size),
    }
    if variant == "OLMo-2":
        layer |= {"attn.q_norm.weight": (hidden_size,), "attn.k_norm.weight": (num_keys,)}
    tensors = random_tensors(recurrent_shapes(config, layer))
    return {name: tensor + 1 if name.endswith("ln_f.weight") else tensor for name, tensor in tensors.items()}


def rotation_frequencies(config: dict) -> Tensor:
    """Per pair of channels; Llama-3 slows those of long wavelengths down, with a ramp in between."""
    channels = config["head_dim"] // 2
    frequencies = config["rope_theta"] ** -(torch.arange(channels) / channels)
    scaling = config.get("rope_scaling")
    if scaling is None:
        return frequencies
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling["factor"]


def rotate(x: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding of `[B, T, H, D]` that turns features i and i + D/2."""
    angles = (torch.arange(x.shape[1])[:, None] * frequencies)[:, None]
    first, second = x.chunk(2, dim=-1)
    turned = [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()]
    return torch.cat(turned, dim=-1)


def reference_logits(variant: str, config: dict, tensors: dict, num_loops: int, state: Tensor | None = None) -> Tensor:
    """2511.07384: Huginn's schedule over the base model's layers."""

    def norm(x, name):
        return rms_norm(x, tensors[f"{name}.weight"], config["norm_eps"])

    turn = partial(rotate, frequencies=rotation_frequencies(config))

    def llama_layer(x, name):
        x = x + fused_attention(norm(x, f"{name}.norm_1"), tensors, f"{name}.attn", config, turn)
        return x + fused_swiglu(norm(x, f"{name}.norm_2"), tensors, f"{name}.mlp")

    def olmo_layer(x, name):
        norms = [partial(norm, name=f"{name}.attn.{part}_norm") for part in "qk"]
        x = x + norm(fused_attention(x, tensors, f"{name}.attn", config, turn, norms=norms), f"{name}.norm_1")
        return x + norm(fused_swiglu(x, tensors, f"{name}.mlp"), f"{name}.norm_2")

    run_layer = olmo_layer if variant == "OLMo-2" else llama_layer
    final_norm = partial(norm, name="transformer.ln_f")
    return recurrent_logits(config, tensors, INPUT_IDS, num_loops, run_layer, final_norm, state, norms_core=False)


@torch.no_grad()
def test_logits_equal_the_published_forward_at_any_loop_count(variant, tmp_path):
    config = CONFIG | VARIANTS[variant]
    tensors = make_tensors(variant, config)
    model = convert(write_checkpoint(tmp_path, config, tensors), state_init="zeros")
    assert model.config.backbone_config.model_type == ("olmo2" if variant == "OLMo-2" else "llama")
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    for num_loops in (1, 3, 7):
        expected = reference_logits(variant, config, tensors, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.num_loops == 3


@torch.no_grad()
def test_the_state_keeps_the_spread_of_huginns_width(variant, tmp_path):
    config = CONFIG | VARIANTS[variant]
    tensors = make_tensors(variant, config)
    model = convert(write_checkpoint(tmp_path, config, tensors))
    assert model.config.state_std == pytest.approx(0.0087, abs=1e-4)
    state = model.model.make_initial_state(torch.zeros(2, 30, 48), torch.arange(30)[None], None)
    expected = reference_logits(variant, config, tensors, 3, state)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_state_that_starts_as_the_input(tmp_path):
    config = CONFIG | {"initial_state_mode": "embed-init"}
    model = convert(write_checkpoint(tmp_path / "input", config, make_tensors("TinyLlama", CONFIG)))
    assert model.config.state_init == "input"
    config["initial_state_mode"] = "skip-adapter"
    with pytest.raises(ValueError, match="`initial_state_mode` of the checkpoint is 'skip-adapter'"):
        convert(write_checkpoint(tmp_path / "skip", config, make_tensors("TinyLlama", CONFIG)))


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [(32000, (1, 2, 2)), (128256, (128000, 128001, 128004)), (100352, (100257, 100257, 100277))],
)
def test_huginns_special_tokens_are_replaced_by_the_base_models(vocab_size, expected, tmp_path):
    small = {"n_embd": 4, "n_heads": 1, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 4}
    config = CONFIG | HUGINN_TOKEN_IDS | small | {"vocab_size": vocab_size, "padded_vocab_size": vocab_size}
    model = convert(write_checkpoint(tmp_path, config, make_tensors("TinyLlama", config)))
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == expected


def test_the_tokenizer_beside_the_weights_has_the_last_word_on_special_tokens(tmp_path):
    folder = write_checkpoint(tmp_path, CONFIG | HUGINN_TOKEN_IDS, make_tensors("TinyLlama", CONFIG))
    with pytest.raises(ValueError, match=r"65505, which is Huginn's: put the base model's tokenizer\.json beside it"):
        convert(folder)
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<|start|>", "<|end|>", "word"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, "<unk>")), bos_token="<|start|>", eos_token="<|end|>"
    )
    tokenizer.save_pretrained(folder)
    model = convert(folder)
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (1, 2, None)
