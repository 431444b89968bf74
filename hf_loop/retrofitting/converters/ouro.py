"""Ouro 1.4B and 2.6B (https://huggingface.co/papers/2510.25741) as a looped model over a GLM-4 backbone.

Ouro runs its whole stack `total_ut_steps` times, and the final norm ends every loop. Its layer puts a norm before and
after each sublayer, `x + n2(attn(n1(x)))` and `x + n4(mlp(n3(x)))`, which is the layer of transformers' `glm4`. Two
things are stored differently there: the gate and up projections are one matrix, and the rotary embedding turns
neighbouring features (2i, 2i + 1) where Ouro turns (i, i + D/2), which a permutation of the rows of the query and key
projections undoes: a permutation common to both leaves their products as they were.

Ouro's exit gate is kept where the checkpoint has it (`exit_gate`). It changes no logits: at the published
`early_exit_threshold` of 1 those are the last loop's (unless rounding makes the exit probabilities of earlier loops
sum to 1), as they are in the converted model. The released code answers a call with `labels` differently: there the
loss is that of a mixture of the logits of all loops, weighted by the gate.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Glm4Config

from ...models import LoopedConfig
from .rules import Rule, apply_rules, drop_tied_head, rename


GATE = "model.early_exit_gate"
# a norm before and after attention, then before and after the MLP: Ouro's names and GLM-4's
LAYER_NORMS = {
    "input_layernorm": "input_layernorm",
    "input_layernorm_2": "post_self_attn_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "post_attention_layernorm_2": "post_mlp_layernorm",
}
UNCHANGED = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BACKBONE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)
# Ouro's tokenizer; the published config names <|endoftext|> as start, end and padding alike, so that a chat turn,
# which ends with <|im_end|>, never stops
END_OF_TEXT, START_OF_TURN, END_OF_TURN = 0, 1, 2


def recognizes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's `config.json` is Ouro's."""
    return config.get("model_type") == "ouro"


def convert_config(config: dict[str, Any]) -> LoopedConfig:
    """The configuration of the looped model.

    Args:
        config (`dict`): Ouro's `config.json`.

    Returns:
        `LoopedConfig`, over a `Glm4Config`, with the special tokens of Ouro's tokenizer.

    Raises:
        ValueError: sliding windows, or an exit before the last loop, are switched on.
    """
    _check_supported(config)
    fields = {name: copy.deepcopy(config[name]) for name in BACKBONE_FIELDS if config.get(name) is not None}
    # GLM-4 turns half of the features unless told otherwise
    fields["partial_rotary_factor"] = 1.0
    pad_token_id, bos_token_id, eos_token_id = _special_tokens(config)
    backbone_config = Glm4Config(
        **fields,
        num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=_head_dim(config),
        attention_bias=False,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        dtype=config.get("dtype", config.get("torch_dtype")),
    )
    return LoopedConfig(
        backbone_config=backbone_config,
        num_loops=config.get("total_ut_steps", 4),
        loop_norm="final",
        exit_gate=_has_gate(config),
    )


def convert_state_dict(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from Ouro's, with rows for the rotation of GLM-4 and one matrix for gate and up projections."""
    rules = [
        rename("model.embed_tokens.weight", "model.backbone.embed_tokens.weight"),
        rename("model.norm.weight", "model.backbone.norm.weight"),
    ]
    if _has_gate(config):
        rules += [rename(f"{GATE}.{name}", f"model.exit_gate.{name}") for name in ("weight", "bias")]
    if config.get("tie_word_embeddings"):
        drop_tied_head(tensors, "lm_head.weight", "model.embed_tokens.weight")
    else:
        rules.append(rename("lm_head.weight", "lm_head.weight"))
    layers = [f"layers.{index}" for index in range(config["num_hidden_layers"])]
    for layer in layers:
        rules += _layer_rules(f"model.{layer}", f"model.backbone.{layer}", _head_dim(config))
    converted = apply_rules(rules, tensors)
    for layer in layers:
        mlp = f"model.backbone.{layer}.mlp"
        gate_and_up = [converted.pop(f"{mlp}.{name}_proj.weight") for name in ("gate", "up")]
        converted[f"{mlp}.gate_up_proj.weight"] = torch.cat(gate_and_up)
    return converted


def _layer_rules(source: str, target: str, head_dim: int) -> list[Rule]:
    rules = [rename(f"{source}.{old}.weight", f"{target}.{new}.weight") for old, new in LAYER_NORMS.items()]
    rules += [rename(f"{source}.{name}.weight", f"{target}.{name}.weight") for name in UNCHANGED]
    for name in ("self_attn.q_proj", "self_attn.k_proj"):
        rules.append(
            Rule(
                f"{source}.{name}.weight",
                (f"{target}.{name}.weight",),
                lambda weight: [interleave_rotary_rows(weight, head_dim)],
            )
        )
    return rules


def interleave_rotary_rows(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection for a rotary embedding that turns neighbouring features.

    Args:
        weight (`torch.Tensor` of shape `[H * D, hidden_size]`): made for one that turns features i and i + D/2.
        head_dim (`int`): D.

    Returns:
        `torch.Tensor` of the same shape: rows i and i + D/2 of every head became rows 2i and 2i + 1.
    """
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def _check_supported(config: dict[str, Any]) -> None:
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or []):
        raise ValueError("`use_sliding_window` of an Ouro checkpoint must be False: its layers become GLM-4's")
    threshold = config.get("early_exit_threshold")
    if threshold is not None and threshold < 1:
        raise ValueError(
            f"`early_exit_threshold` of an Ouro checkpoint must be 1, got {threshold}: set it to 1, and let tokens "
            f"exit by `generate(exit_criterion='gate', exit_threshold={threshold})`"
        )
    if config.get("early_exit_step") is not None:
        raise ValueError(
            f"`early_exit_step` of an Ouro checkpoint must not be set, got {config['early_exit_step']}: set "
            "`total_ut_steps` to the loops wanted"
        )


def _has_gate(config: dict[str, Any]) -> bool:
    # copies for runtimes that have no exits lack it
    return f"{GATE}.weight" in config.get("tensor_names", [f"{GATE}.weight"])


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _special_tokens(config: dict[str, Any]) -> tuple[int, int, list[int]]:
    """Ids of padding, start and ends of text, with the published ones corrected."""
    pad_token_id, bos_token_id, eos = (config.get(f"{name}_token_id") for name in ("pad", "bos", "eos"))
    if bos_token_id in (None, END_OF_TEXT):
        bos_token_id = START_OF_TURN
    own = eos if isinstance(eos, list) else [] if eos is None else [eos]
    eos_token_ids = list(dict.fromkeys([END_OF_TURN, END_OF_TEXT, *own]))
    return END_OF_TEXT if pad_token_id is None else pad_token_id, bos_token_id, eos_token_ids
