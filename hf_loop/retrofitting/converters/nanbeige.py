"""Nanbeige4.2 (https://huggingface.co/papers/2607.22083) as a looped model over a Llama backbone.

The published model is a Llama (grouped queries, half-split rotary embedding, SwiGLU) whose whole stack runs
`num_loops` times, with the final norm at the end of every loop unless `skip_loop_final_norm`. A non-empty
`loop_loss_weights` sets the loop count instead of `num_loops`: one weight for each loop before the last.

Its code has further options, all off in the published checkpoints; one that is on is refused by name.
"""

import copy
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from ...models import LoopedConfig
from .rules import Rule, apply_rules, rename


BACKBONE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
UNSUPPORTED = (
    "qk_layernorm",
    "emb_neighbor_num",
    "emb_split_num",
    "ngram_vocab_size_ratio",
    "insert_ngram_layer_idx",
    "ngram_insert_all_layers",
    "enable_double_loop_split",
    "loop_middle_layers",
    "loop_share_kv",
    "enable_hyper_connection",
    "enable_mhc",
    "enable_h_res_identity",
    "mhc_diff_for_loop",
    "mhc_double_stream_position_for_loop",
    "enable_depth_attention",
)
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def recognizes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's `config.json` is that of a looped Nanbeige (the first, unlooped one shares the type)."""
    return config.get("model_type") == "nanbeige" and "num_loops" in config


def convert_config(config: dict[str, Any]) -> LoopedConfig:
    """The configuration of the looped model.

    Args:
        config (`dict`): Nanbeige's `config.json`.

    Returns:
        `LoopedConfig`, over a `LlamaConfig`.

    Raises:
        ValueError: an option that changes the computation is switched on; the message names all of them.
    """
    switched_on = [f"{name}={config[name]!r}" for name in UNSUPPORTED if config.get(name)]
    if switched_on:
        raise ValueError(f"options of this Nanbeige checkpoint are not supported: {', '.join(switched_on)}")
    fields = {name: copy.deepcopy(config[name]) for name in BACKBONE_FIELDS if config.get(name) is not None}
    backbone_config = LlamaConfig(
        **fields,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        dtype=config.get("dtype", config.get("torch_dtype")),
    )
    loop_loss_weights = config.get("loop_loss_weights")
    return LoopedConfig(
        backbone_config=backbone_config,
        num_loops=len(loop_loss_weights) + 1 if loop_loss_weights else config["num_loops"],
        loop_norm="none" if config.get("skip_loop_final_norm") else "final",
    )


def convert_state_dict(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Nanbeige's tensors under the names of the looped model.

    Args:
        config (`dict`): Nanbeige's `config.json`.
        tensors (`dict`): its tensors by name; those that Nanbeige has are taken out, and the rotary frequencies that
            some copies store, which follow from the configuration.

    Returns:
        `dict` of the looped model's tensors by name.

    Raises:
        ValueError: tensors are missing; the message names them.
    """
    for name in [name for name in tensors if name.endswith(".rotary_emb.inv_freq")]:
        del tensors[name]
    rules = [
        rename("model.embed_tokens.weight", "model.backbone.embed_tokens.weight"),
        rename("model.norm.weight", "model.backbone.norm.weight"),
    ]
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    else:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    for index in range(config["num_hidden_layers"]):
        rules += _layer_rules(config, index)
    return apply_rules(rules, tensors)


def _layer_rules(config: dict[str, Any], index: int) -> list[Rule]:
    names = [f"{module}.weight" for module in ATTENTION + MLP + NORMS]
    if config.get("attention_bias"):
        names += [f"{module}.bias" for module in ATTENTION]
    if config.get("mlp_bias"):
        names += [f"{module}.bias" for module in MLP]
    return [rename(f"model.layers.{index}.{name}", f"model.backbone.layers.{index}.{name}") for name in names]
