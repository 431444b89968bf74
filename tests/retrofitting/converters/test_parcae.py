"""Parcae converted equals Parcae's published forward, written out here over its own tensor names."""

import math

import pytest
import torch
from torch import Tensor, nn

from hf_loop import convert

from ...models.model_tester import random_ids
from .llama_reference import random_tensors, rms_norm
from .recurrent_reference import rotate_pairs, write_checkpoint


CONFIG = {
    "_class_name": "ParcaeConfig",
    "model_class_name": "Parcae",
    "block_size": 128,
    "n_embd": 48,
    "intermediate_size": 80,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "vocab_size": 90,
    "padded_vocab_size": 97,
    "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": 50000},
    "block_class_name": "TransformerPreNormBlock",
    "norm_class_name": "RMSNorm",
    "norm_eps": 1e-5,
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
    "bias": False,
    "qk_bias": False,
    "qk_norm": True,
    "clip_qkv": None,
    "logit_softcap": None,
    "init_strategy": "scaled-zero",
    "mup_model_scaling_factor": 1,
    "use_fused_head": "pytorch",
    "injection_type": "diagonal",
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 2,
    "state_init": "like-init",
    "recurrent_embedding_dimension": 48,
    "recurrent_intermediation_embedding_dimension": 80,
    "recurrent_num_attention_heads": None,
    "prelude_norm": True,
    "mean_recurrence": 8,
    "mean_backprop_depth": 4,
    "tie_embeddings": True,
}
# an odd core and prelude: value embeddings and gates are then in different layers, and only some layers have both
ODD = {
    "n_layers_in_prelude": 3,
    "n_layers_in_recurrent_block": 3,
    "n_layers_in_coda": 3,
    "mean_recurrence": 4,
    "mean_backprop_depth": 5,
}
VARIANTS = {
    "published": {},
    "odd": ODD,
    "untied": {"tie_embeddings": False, "logit_softcap": 2.0},
    "scaled": {"init_strategy": "takase-scaled"},
    "linear": {"injection_type": "linear", "prelude_norm": False},
    "add": {"injection_type": "add", "prelude_norm": False},
}
INPUT_IDS = random_ids(2, 30)


def layer_prefixes(config: dict) -> list[str]:
    parts = (("prelude", "prelude"), ("core_block", "recurrent_block"), ("coda", "coda"))
    return [f"transformer.{name}.{index}" for name, key in parts for index in range(config[f"n_layers_in_{key}"])]


def is_chosen(place: int, length: int) -> bool:
    """Every second layer, and the last."""
    return place % 2 == (length - 1) % 2


def gate_place(config: dict, index: int) -> int:
    """The number that a layer is built with: the coda's come after all loops."""
    first_of_coda = config["n_layers_in_prelude"] + config["n_layers_in_recurrent_block"]
    extra_loops = config["mean_recurrence"] - 1
    return index + (extra_loops * config["n_layers_in_recurrent_block"] if index >= first_of_coda else 0)


def make_tensors(config: dict) -> dict[str, Tensor]:
    hidden_size, intermediate_size = config["n_embd"], config["intermediate_size"]
    vocab_size = config["padded_vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab_size, hidden_size),
        "transformer.C.weight": (hidden_size, hidden_size),
        "lm_head.weight": (vocab_size, hidden_size),
        "transformer.ln_f_norm.weight": (hidden_size,),
    }
    if config["injection_type"] == "diagonal":
        shapes |= {f"transformer.adapter.{name}": (hidden_size,) for name in ("A_log", "dt_bias")}
        shapes["transformer.adapter.B"] = (hidden_size, hidden_size)
        shapes["transformer.ln_prelude_norm.weight"] = (hidden_size,)
    elif config["injection_type"] == "linear":
        shapes["transformer.adapter.adapter.weight"] = (hidden_size, 2 * hidden_size)
    prefixes = layer_prefixes(config)
    depth = config["n_layers_in_recurrent_block"] * config["mean_backprop_depth"]
    for index, prefix in enumerate(prefixes):
        shapes |= {f"{prefix}.attn.c_{name}.weight": (hidden_size, hidden_size) for name in ("q", "k", "v", "proj")}
        shapes |= {f"{prefix}.norm_{number}.weight": (hidden_size,) for number in (1, 2)}
        shapes[f"{prefix}.mlp.fc.weight"] = (intermediate_size, hidden_size)
        shapes[f"{prefix}.mlp.proj.weight"] = (hidden_size, intermediate_size)
        if is_chosen(gate_place(config, index), depth):
            shapes[f"{prefix}.attn.ve_gate.weight"] = (config["num_attention_heads"], 32)
        if is_chosen(index, len(prefixes)):
            shapes[f"value_embeds.{index}.weight"] = (vocab_size, hidden_size)
    tensors = random_tensors(shapes)
    if config["tie_embeddings"]:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    tensors["freqs_cis"] = torch.zeros(1, config["block_size"], 1, hidden_size // 6, 2)
    # named above so that their values are near one
    return {name.replace("_norm.", "."): 3 * tensor if "value" in name else tensor for name, tensor in tensors.items()}


def run_layer(x: Tensor, index: int, config: dict, tensors: dict[str, Tensor]) -> Tensor:
    """A pre-norm layer: rotation, then unit queries and keys; the token's embedding in the values; relu^2 / 2."""
    name, heads = layer_prefixes(config)[index], config["num_attention_heads"]
    normed = rms_norm(x, tensors[f"{name}.norm_1.weight"], config["norm_eps"])
    query, key, value = (
        (normed @ tensors[f"{name}.attn.c_{part}.weight"].T).unflatten(-1, (heads, -1)) for part in "qkv"
    )
    table, gate = tensors.get(f"value_embeds.{index}.weight"), tensors.get(f"{name}.attn.ve_gate.weight")
    if table is not None and gate is not None:
        strength = 2 * torch.sigmoid(normed[..., :32] @ gate.T)
        value = value + strength[..., None] * table[INPUT_IDS].unflatten(-1, (heads, -1))
    ones = torch.ones(query.shape[-1])
    query, key = (
        rms_norm(rotate_pairs(states, config["rope_settings"]["rope_base"]), ones, torch.finfo(torch.float32).eps)
        for states in (query, key)
    )
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(-2)
    x = x + mixed @ tensors[f"{name}.attn.c_proj.weight"].T
    inner = rms_norm(x, tensors[f"{name}.norm_2.weight"], config["norm_eps"]) @ tensors[f"{name}.mlp.fc.weight"].T
    return x + (nn.functional.relu(inner) ** 2 / 2) @ tensors[f"{name}.mlp.proj.weight"].T


def inject(state: Tensor, encoded: Tensor, config: dict, tensors: dict[str, Tensor]) -> Tensor:
    if config["injection_type"] == "linear":
        return torch.cat([state, encoded], dim=-1) @ tensors["transformer.adapter.adapter.weight"].T
    if config["injection_type"] == "add":
        return state + encoded
    step = nn.functional.softplus(tensors["transformer.adapter.dt_bias"])
    decay = torch.exp(-step * torch.exp(tensors["transformer.adapter.A_log"]))
    return decay * state + step * (encoded @ tensors["transformer.adapter.B"].T)


def reference_logits(config: dict, tensors: dict[str, Tensor], num_loops: int, state: Tensor | None = None) -> Tensor:
    """Sections 3 and 4 of 2604.12946, with the details of the published code."""
    count, first = len(layer_prefixes(config)), config["n_layers_in_prelude"]
    last = count - config["n_layers_in_coda"]
    scales = config["init_strategy"] == "takase-scaled"
    encoded = tensors["transformer.wte.weight"][INPUT_IDS] * (math.sqrt(config["n_embd"]) if scales else 1)
    for index in range(first):
        encoded = run_layer(encoded, index, config, tensors)
    if config["prelude_norm"]:
        encoded = rms_norm(encoded, tensors["transformer.ln_prelude.weight"], config["norm_eps"])
    state = torch.zeros_like(encoded) if state is None else state
    for _ in range(num_loops):
        state = inject(state, encoded, config, tensors)
        for index in range(first, last):
            state = run_layer(state, index, config, tensors)
    state = state @ tensors["transformer.C.weight"].T
    for index in range(last, count):
        state = run_layer(state, index, config, tensors)
    logits = rms_norm(state, tensors["transformer.ln_f.weight"], config["norm_eps"]) @ tensors["lm_head.weight"].T
    logits = logits * (math.sqrt(2 / 5 / config["n_embd"]) if scales else 1)
    cap = config["logit_softcap"]
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.fixture(params=VARIANTS)
def config(request):
    return CONFIG | VARIANTS[request.param]


@torch.no_grad()
def test_logits_equal_the_published_forward_at_any_loop_count(config, tmp_path):
    tensors = make_tensors(config)
    model = convert(write_checkpoint(tmp_path, config, tensors), state_init="zeros")
    for num_loops in (1, config["mean_recurrence"], 11):
        expected = reference_logits(config, tensors, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.num_loops == config["mean_recurrence"]


@torch.no_grad()
def test_the_random_state_has_the_published_spread(tmp_path):
    tensors = make_tensors(CONFIG)
    model = convert(write_checkpoint(tmp_path, CONFIG, tensors))
    state = model.model.make_initial_state(torch.zeros(2, 30, 48), torch.arange(30)[None], None)
    assert state.std().item() == pytest.approx(math.sqrt(2 / 5 / 48), rel=0.05)
    expected = reference_logits(CONFIG, tensors, 8, state)
    torch.testing.assert_close(model(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("config", "layers"), [(CONFIG, [1, 3, 5]), (CONFIG | ODD, [0, 2, 4])])
def test_layers_with_both_a_table_and_a_gate_have_value_embeddings(config, layers, tmp_path):
    model = convert(write_checkpoint(tmp_path, config, make_tensors(config)))
    assert list(model.config.backbone_config.value_embedding_layers) == layers
    with_tables = [layer.self_attn.has_value_embedding for layer in model.model.backbone.layers]
    assert [index for index, has_table in enumerate(with_tables) if has_table] == layers


@torch.no_grad()
def test_names_as_compiled_or_distributed_training_leaves_them(tmp_path):
    tensors = make_tensors(CONFIG)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}
    model = convert(write_checkpoint(tmp_path, CONFIG, wrapped), state_init="zeros")
    torch.testing.assert_close(model(INPUT_IDS).logits, reference_logits(CONFIG, tensors, 8), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_head_as_the_fused_kernel_stores_it(tmp_path):
    config = CONFIG | {"tie_embeddings": False, "use_fused_head": "full-triton"}
    tensors = make_tensors(config)
    stored = tensors | {"lm_head.weight": tensors["lm_head.weight"].T}
    model = convert(write_checkpoint(tmp_path, config, stored), state_init="zeros")
    torch.testing.assert_close(model(INPUT_IDS).logits, reference_logits(config, tensors, 8), atol=1e-5, rtol=1e-5)


def test_the_published_vocabulary_has_known_special_tokens(tmp_path):
    config = CONFIG | {"vocab_size": 32768, "padded_vocab_size": 32768}
    model = convert(write_checkpoint(tmp_path / "published", config, make_tensors(config)))
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (0, 1, 2)
    model = convert(write_checkpoint(tmp_path / "other", CONFIG, make_tensors(CONFIG)))
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (None, None, None)


def test_embeddings_instead_of_tokens_are_refused(tmp_path):
    model = convert(write_checkpoint(tmp_path, CONFIG, make_tensors(CONFIG)))
    with pytest.raises(ValueError, match="parcae_backbone backbone needs `input_ids`"):
        model(inputs_embeds=torch.zeros(1, 3, 48))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nonlin_name", "GELU"),
        ("state_init", "embed"),
        ("prelude_norm", False),
        ("init_strategy", "deepnorm-subln"),
        ("recurrent_embedding_dimension", 64),
        ("recurrent_num_attention_heads", 6),
        ("clip_qkv", 8.0),
    ],
)
def test_settings_without_a_counterpart_are_refused(field, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{field}` of the checkpoint is {value!r}"):
        convert(write_checkpoint(tmp_path, CONFIG | {field: value}, make_tensors(CONFIG)))


def test_a_rotation_without_a_counterpart_is_refused(tmp_path):
    rope = CONFIG["rope_settings"] | {"rope_condense_ratio": 2}
    with pytest.raises(ValueError, match="`rope_condense_ratio` of the checkpoint is 2"):
        convert(write_checkpoint(tmp_path, CONFIG | {"rope_settings": rope}, make_tensors(CONFIG)))
