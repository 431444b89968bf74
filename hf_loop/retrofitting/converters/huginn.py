"""Huginn-0125 and other models of `recurrent-pretraining` (https://huggingface.co/papers/2502.05171).

What the published code does is stated in seal-rg/recurrent-pretraining, `recpre/raven_modeling_minimal.py`. Here as
there: `e = prelude(sqrt(d) embed(x))`; loops of `core(A [s; e])`; then the final norm, the coda, and the final norm
again. Differently: queries and keys are stored for transformers' rotation (half-split, theirs is interleaved), and
the random initial state comes from another generator, with the same distribution and the same for every example.
"""

import math
from functools import partial
from typing import Any

import torch

from ...models import LoopedConfig
from ...models.configuration_huginn import HuginnBackboneConfig
from .rules import Rule, apply_rules, check_settings, drop_tied_head, half_split_rotary, rename, split_rows


MODEL_TYPES = ("huginn_raven", "raven")
# the minimal code has no other blocks; the training code has
SETTINGS = {
    "bias": (False,),
    "block_class_name": ("SandwichBlock",),
    "injection_type": ("linear", "add"),
    "mlp_class_name": ("GatedMLP",),
    "nonlin_name": ("SiLU",),
    "norm_class_name": ("RMSNorm_llama", "RMSNorm"),
    "state_init": ("like-init", "zero"),
    "test_time_noise": (0,),
}
INJECTIONS: dict[str, Any] = {"linear": "concat", "add": "add"}
STATE_INITS: dict[str, Any] = {"like-init": "normal", "zero": "zeros"}
# of Huginn-0125's vocabulary of 65536
BEGIN_TEXT, END_TEXT, END_TURN, PAD = 65504, 65505, 65508, 65509


def recognizes(config: dict) -> bool:
    """Whether the rotation is Huginn's own; retrofits under the same model type give transformers a `rope_theta`."""
    return config.get("model_type") in MODEL_TYPES and "rope_theta" not in config


def num_layers(config: dict) -> tuple[int, int, int]:
    """Layers in the prelude, the core and the coda."""
    parts = ("prelude", "recurrent_block", "coda")
    prelude, core, coda = (config[f"n_layers_in_{part}"] for part in parts)
    return prelude, core, coda


def layer_names(config: dict) -> list[tuple[str, str]]:
    """The prefix of every layer in the source and in ours."""
    prelude, core, coda = num_layers(config)
    names = [f"transformer.prelude.{index}" for index in range(prelude)]
    names += [f"transformer.core_block.{index}" for index in range(core)]
    names += [f"transformer.coda.{index}" for index in range(coda)]
    return [(name, f"model.backbone.layers.{index}") for index, name in enumerate(names)]


def convert_config(config: dict) -> LoopedConfig:
    """The configuration of ours.

    Raises:
        ValueError: a setting has no counterpart here.
    """
    check_settings(config, SETTINGS)
    # the published code computes it, whatever `init_values` says
    embedding_scale = math.sqrt(config["n_embd"])
    prelude, core, coda = num_layers(config)
    backbone_config = HuginnBackboneConfig(
        vocab_size=config.get("padded_vocab_size", config["vocab_size"]),
        hidden_size=config["n_embd"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=prelude + core + coda,
        num_attention_heads=config["n_heads"],
        num_key_value_heads=config.get("num_key_value_heads", config["n_heads"]),
        max_position_embeddings=config["block_size"],
        initializer_range=config["init_values"]["std"],
        rms_norm_eps=config["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_base"])},
        tie_word_embeddings=config["tie_embeddings"],
        embedding_multiplier=embedding_scale,
        qk_bias=config["qk_bias"],
        **token_ids(config),
    )
    return LoopedConfig(
        backbone_config=backbone_config,
        num_prelude_layers=prelude,
        num_coda_layers=coda,
        num_loops=config["mean_recurrence"],
        injection=INJECTIONS[config["injection_type"]],
        state_init=STATE_INITS[config["state_init"]],
        state_std=config["init_values"]["std"] * embedding_scale,
        coda_norm=True,
    )


def token_ids(config: dict) -> dict[str, Any]:
    """The special token ids; in Huginn-0125 the end of a turn ends a generation, too, as its own code has it."""
    if config["vocab_size"] > PAD:
        return {"bos_token_id": BEGIN_TEXT, "eos_token_id": [END_TEXT, END_TURN], "pad_token_id": PAD}
    stated = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return stated | config["tokenizer_token_ids"]


def convert_state_dict(config: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights from theirs; the rotation's table and the second copy of a tied embedding are dropped."""
    tensors.pop("freqs_cis", None)
    rules = outer_rules(config)
    if config["tie_embeddings"]:
        drop_tied_head(tensors, "lm_head.weight", "transformer.wte.weight")
    else:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    for source, target in layer_names(config):
        rules += layer_rules(config, source, target)
    return apply_rules(rules, tensors)


def outer_rules(config: dict) -> list[Rule]:
    """What lies around the layers, without the head."""
    rules = [
        rename("transformer.wte.weight", "model.backbone.embed_tokens.weight"),
        rename("transformer.ln_f.weight", "model.backbone.norm.weight"),
    ]
    if config["injection_type"] == "linear":
        rules.append(rename("transformer.adapter.weight", "model.injection.proj.weight"))
    return rules


def layer_rules(config: dict, source: str, target: str) -> list[Rule]:
    """One layer."""
    head_dim = config["n_embd"] // config["n_heads"]
    key_size = config.get("num_key_value_heads", config["n_heads"]) * head_dim
    attention, rotate = f"{target}.self_attn", partial(half_split_rotary, head_dim=head_dim)

    def split_attention(fused: torch.Tensor) -> list[torch.Tensor]:
        queries, keys, values = fused.split([config["n_embd"], key_size, key_size])
        return [rotate(queries), rotate(keys), values]

    def split_bias(bias: torch.Tensor) -> list[torch.Tensor]:
        return [rotate(half.flatten()) for half in bias.unbind()]

    projections = tuple(f"{attention}.{name}_proj.weight" for name in "qkv")
    rules = [
        Rule(f"{source}.attn.Wqkv.weight", projections, split_attention),
        rename(f"{source}.attn.proj.weight", f"{attention}.o_proj.weight"),
        Rule(
            f"{source}.mlp.fc.weight",
            (f"{target}.mlp.gate_proj.weight", f"{target}.mlp.up_proj.weight"),
            split_rows(config["intermediate_size"], config["intermediate_size"]),
        ),
        rename(f"{source}.mlp.proj.weight", f"{target}.mlp.down_proj.weight"),
        rename(f"{source}.norm_1.weight", f"{target}.input_layernorm.weight"),
        rename(f"{source}.norm_2.weight", f"{target}.post_attention_layernorm.weight"),
        rename(f"{source}.norm_3.weight", f"{target}.pre_feedforward_layernorm.weight"),
        rename(f"{source}.norm_4.weight", f"{target}.post_feedforward_layernorm.weight"),
    ]
    if config["qk_bias"]:
        biases = (f"{attention}.q_proj.bias", f"{attention}.k_proj.bias")
        rules.append(Rule(f"{source}.attn.qk_bias", biases, split_bias))
    return rules
