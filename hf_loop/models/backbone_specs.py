# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Where every architecture keeps its parts, and what its own forward does around its layers.

An architecture that is in no table here is opened with the default entry, once `backbone_check.py` has held it to the
base model.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .backbone_steps import (
    add_biogpt_positions,
    add_ctrl_positions,
    add_gpt_positions,
    add_opt_positions,
    add_xglm_positions,
    bloom_alibi,
    both_masks,
    divide_by_logits_scaling,
    dropout_module,
    dropout_rate,
    enter_hrm,
    enter_unchanged,
    falcon_alibi,
    gpt_dropout_module,
    layernorm_embeddings,
    masks_and_first_states,
    mpt_alibi,
    multiply_by_head_multiplier,
    multiply_by_logits_scaling,
    neox_dropout_module,
    norm_embeddings,
    own_keys,
    rotate_attention_layers,
    rotate_by_base,
    rotate_if_asked,
    rotate_sliding_layers,
    scale_by_config,
    scale_embeddings,
    scale_logits,
    softcap_logits,
    unchanged,
)
from .modeling_hrm import HrmBackboneModel
from .modeling_huginn import HuginnBackboneModel
from .modeling_parcae import ParcaeBackboneModel, scale_and_softcap
from .transformers_seams import GPTJ_ROTARY


@dataclass(frozen=True)
class BackboneSpec:
    """Where one architecture keeps its parts and what its own forward does around the layers.

    Args:
        embed_tokens, layers, norm (`str`): attribute names of the parts in the base model; dotted inside another part.
        rotary (`str`, *optional*): the rotary embedding; `None` where positions reach the layers in another way.
        enter (`Callable`): the first layer's input from the base model, the token embeddings and their positions.
        enter_head (`Callable`): what the causal head does, by its configuration, to the normed states before the
            linear map.
        finish_logits (`Callable`): what the causal head does, by its configuration, to the logits after it.
        layer_arguments (`Callable`, *optional*): what layers are given besides, from the base model, the first layer's
            input, the caller's mask, the masks made of it, and how many tokens the cache holds. An `attention_mask`
            among them replaces the masks.
        adds_positions (`bool`): whether `enter` adds the positions, so that later layers do not know them.
        counts_padding (`bool`): whether positions that the caller does not give count padding, as most do.
        needs_masks (`bool`): whether layers need a mask where attention functions could do without one, with all rows.
        counts_columns (`bool`): whether layers count the columns of their cache, for ALiBi, a mask of their own or a
            choice among them, so that it must hold all tokens in their order.
        rotary_per_layer_type (`bool`): whether the rotary embedding is asked once per layer type.
        rotate (`Callable`, *optional*): the rotary embedding of positions where the base model asks for it in a way of
            its own, from the base model, the first layer's input and its positions: a dict by layer type, or a list
            with one entry for every layer.
        position_rows (`int`): rows of position ids the rotary embedding wants (3 for temporal, height and width).
        head_bias (`bool`): whether the causal head has a bias.
        layers_take_token_ids (`bool`): whether the layers look up embeddings of their own.
        layers_take_index (`bool`): whether a layer is told its number when it is called.
        continues_by_token (`bool`): whether layers that keep a state go on from it with one token at a time only.
        keeps_fast_weights (`bool`): whether layers with a state go on from it alone, as a window after sleep does;
            where it is not known, [`SleepModel`] tries it.
        layer_entry (`str`): the part of a layer that reads its input first, beside the residual.
        model_class (`type`, *optional*): the base model, where the Auto classes would not find it by the
            configuration. Code that came with a checkpoint may hold the configuration's class twice.
        high_layers (`str`, *optional*): where a second stack of layers is, after those of `layers`.
        low_state (`str`, *optional*): the vector that the state of the first stack starts from.
        has_variants (`bool`): whether some configurations of the architecture do not fit the entry, so that every one
            is checked.
    """

    embed_tokens: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    rotary: str | None = "rotary_emb"
    enter: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] = enter_unchanged
    enter_head: Callable[[Any, torch.Tensor], torch.Tensor] = unchanged
    finish_logits: Callable[[Any, torch.Tensor], torch.Tensor] = unchanged
    layer_arguments: Callable[[Any, torch.Tensor, Any, Any, int], dict[str, Any]] | None = None
    adds_positions: bool = False
    counts_padding: bool = True
    needs_masks: bool = False
    counts_columns: bool = False
    rotary_per_layer_type: bool = False
    rotate: Callable[[Any, torch.Tensor, torch.Tensor], Any] | None = None
    position_rows: int = 1
    head_bias: bool = False
    layers_take_token_ids: bool = False
    layers_take_index: bool = False
    continues_by_token: bool = False
    keeps_fast_weights: bool = False
    layer_entry: str = "input_layernorm"
    model_class: type[PreTrainedModel] | None = None
    high_layers: str | None = None
    low_state: str | None = None
    has_variants: bool = False


LIKE_LLAMA = BackboneSpec()
_LIKE_GPT2 = BackboneSpec(
    embed_tokens="wte",
    layers="h",
    norm="ln_f",
    rotary=None,
    enter=add_gpt_positions,
    adds_positions=True,
    layer_entry="ln_1",
)
_LIKE_GPTJ = BackboneSpec(
    embed_tokens="wte",
    layers="h",
    norm="ln_f",
    rotary=GPTJ_ROTARY,
    enter=gpt_dropout_module,
    head_bias=True,
    layer_entry="ln_1",
)
_LIKE_GRANITE = BackboneSpec(enter=scale_embeddings, finish_logits=divide_by_logits_scaling)
_LIKE_GRANITE_SWA = BackboneSpec(enter=scale_embeddings, finish_logits=divide_by_logits_scaling, rotate=rotate_by_base)
_WITH_FAST_WEIGHTS = BackboneSpec(keeps_fast_weights=True)
_PER_LAYER_TYPE = BackboneSpec(rotary_per_layer_type=True)

# every entry is held to the base model, bit for bit, by tests/models/test_backbone.py
SUPPORTED_BACKBONES: dict[str, BackboneSpec] = {
    "apertus": BackboneSpec(layer_entry="attention_layernorm"),
    "arcee": LIKE_LLAMA,
    "bamba": BackboneSpec(norm="final_layernorm"),
    "biogpt": BackboneSpec(
        norm="layer_norm",
        rotary=None,
        enter=add_biogpt_positions,
        adds_positions=True,
        layer_entry="self_attn_layer_norm",
    ),
    "bitnet": LIKE_LLAMA,
    "bloom": BackboneSpec(
        embed_tokens="word_embeddings",
        layers="h",
        norm="ln_f",
        rotary=None,
        enter=layernorm_embeddings,
        layer_arguments=bloom_alibi,
        counts_columns=True,
    ),
    "codegen": _LIKE_GPTJ,
    "cohere": BackboneSpec(finish_logits=scale_logits),
    "cohere2": BackboneSpec(finish_logits=scale_logits),
    "cohere2_moe": BackboneSpec(finish_logits=scale_logits),
    "ctrl": BackboneSpec(
        embed_tokens="w",
        layers="h",
        norm="layernorm",
        rotary=None,
        enter=add_ctrl_positions,
        adds_positions=True,
        head_bias=True,
        layer_entry="layernorm1",
    ),
    "deepseek_v3": LIKE_LLAMA,
    "doge": BackboneSpec(needs_masks=True, counts_columns=True),
    "ernie4_5": LIKE_LLAMA,
    "exaone4": BackboneSpec(layer_entry="self_attn"),
    "falcon": BackboneSpec(
        embed_tokens="word_embeddings",
        layers="h",
        norm="ln_f",
        layer_arguments=falcon_alibi,
        needs_masks=True,
        has_variants=True,
    ),
    "falcon_h1": BackboneSpec(
        norm="final_layernorm",
        enter=scale_embeddings,
        finish_logits=multiply_by_head_multiplier,
        layer_arguments=both_masks,
    ),
    "gemma": LIKE_LLAMA,
    "gemma2": BackboneSpec(finish_logits=softcap_logits),
    "gemma3_text": BackboneSpec(finish_logits=softcap_logits, rotary_per_layer_type=True),
    "gemma4_text": BackboneSpec(
        rotary_per_layer_type=True, finish_logits=softcap_logits, layer_arguments=own_keys, has_variants=True
    ),
    "gemma4_unified_text": BackboneSpec(
        rotary_per_layer_type=True, finish_logits=softcap_logits, layer_arguments=own_keys, has_variants=True
    ),
    "glm": LIKE_LLAMA,
    "glm4": LIKE_LLAMA,
    "gpt-sw3": _LIKE_GPT2,
    "gpt2": _LIKE_GPT2,
    "gpt_bigcode": _LIKE_GPT2,
    "gpt_neo": dataclasses.replace(_LIKE_GPT2, counts_columns=True),
    "gpt_neox": BackboneSpec(
        embed_tokens="embed_in",
        norm="final_layer_norm",
        enter=neox_dropout_module,
    ),
    "gpt_neox_japanese": BackboneSpec(embed_tokens="embed_in", norm="final_layer_norm"),
    "gpt_oss": LIKE_LLAMA,
    "gptj": _LIKE_GPTJ,
    "granite": BackboneSpec(enter=scale_embeddings, finish_logits=divide_by_logits_scaling),
    "granite_swa": _LIKE_GRANITE_SWA,
    "granitemoe": _LIKE_GRANITE,
    "granitemoe_swa": _LIKE_GRANITE_SWA,
    "granitemoehybrid": _LIKE_GRANITE,
    "granitemoeshared": _LIKE_GRANITE,
    "helium": LIKE_LLAMA,
    "huginn_backbone": BackboneSpec(enter=scale_embeddings, model_class=HuginnBackboneModel),
    "hunyuan_v1_dense": LIKE_LLAMA,
    "hyperclovax": BackboneSpec(enter=scale_embeddings, finish_logits=multiply_by_logits_scaling),
    "jamba": BackboneSpec(norm="final_layernorm", rotary=None, continues_by_token=True),
    "kimi_linear": BackboneSpec(rotary=None, keeps_fast_weights=True),
    "laguna": _PER_LAYER_TYPE,
    "lara_mini": BackboneSpec(rotate=rotate_sliding_layers),
    "lfm2": BackboneSpec(norm="embedding_norm"),
    "lfm2_moe": BackboneSpec(norm="embedding_norm", rotary="pos_emb"),
    "lfm3": BackboneSpec(norm="embedding_norm", rotate=rotate_attention_layers),
    "llama": LIKE_LLAMA,
    "mellum": _PER_LAYER_TYPE,
    "mimo_v2_flash": _PER_LAYER_TYPE,
    "minicpm3": BackboneSpec(enter_head=divide_by_logits_scaling),
    "ministral": LIKE_LLAMA,
    "mistral": LIKE_LLAMA,
    "mixtral": LIKE_LLAMA,
    "mpt": BackboneSpec(
        embed_tokens="wte",
        layers="blocks",
        norm="norm_f",
        rotary=None,
        layer_arguments=mpt_alibi,
        needs_masks=True,
        counts_columns=True,
        layer_entry="norm_1",
    ),
    "nanochat": BackboneSpec(enter=norm_embeddings, finish_logits=softcap_logits),
    "nemotron": LIKE_LLAMA,
    "nemotron_h": BackboneSpec(embed_tokens="embeddings", norm="norm_f", rotary=None, layer_entry="norm"),
    "olmo": LIKE_LLAMA,
    "olmo2": BackboneSpec(layer_entry="self_attn"),
    "olmo3": BackboneSpec(rotary_per_layer_type=True, layer_entry="self_attn"),
    "olmo_hybrid": _WITH_FAST_WEIGHTS,
    "olmoe": LIKE_LLAMA,
    "opt": BackboneSpec(
        embed_tokens="decoder.embed_tokens",
        layers="decoder.layers",
        norm="decoder.final_layer_norm",
        rotary=None,
        enter=add_opt_positions,
        adds_positions=True,
        counts_padding=False,
        layer_entry="self_attn_layer_norm",
        has_variants=True,
    ),
    "parcae_backbone": BackboneSpec(
        enter=scale_embeddings,
        finish_logits=scale_and_softcap,
        layers_take_token_ids=True,
        model_class=ParcaeBackboneModel,
    ),
    "persimmon": BackboneSpec(norm="final_layernorm"),
    "phi": BackboneSpec(norm="final_layernorm", enter=dropout_module, head_bias=True),
    "phi3": LIKE_LLAMA,
    "qwen2": LIKE_LLAMA,
    "qwen2_moe": LIKE_LLAMA,
    "qwen3": LIKE_LLAMA,
    "qwen3_5_moe_text": BackboneSpec(position_rows=3, keeps_fast_weights=True),
    "qwen3_5_text": BackboneSpec(position_rows=3, keeps_fast_weights=True),
    "qwen3_moe": LIKE_LLAMA,
    "qwen3_next": _WITH_FAST_WEIGHTS,
    "seed_oss": LIKE_LLAMA,
    "smollm3": LIKE_LLAMA,
    "stablelm": LIKE_LLAMA,
    "starcoder2": BackboneSpec(enter=dropout_rate),
    "vaultgemma": BackboneSpec(finish_logits=softcap_logits),
    "xglm": BackboneSpec(
        norm="layer_norm",
        rotary=None,
        enter=add_xglm_positions,
        needs_masks=True,
        adds_positions=True,
        layer_entry="self_attn_layer_norm",
    ),
    "zamba": BackboneSpec(
        norm="final_layernorm", rotary=None, layer_arguments=masks_and_first_states, layers_take_index=True
    ),
    "zamba2": BackboneSpec(
        norm="final_layernorm",
        rotary=None,
        rotate=rotate_if_asked,
        layer_arguments=masks_and_first_states,
        layers_take_index=True,
    ),
}

# decoders of two stacks, which the hierarchical family runs, and no other
TWO_STACK_BACKBONES: dict[str, BackboneSpec] = {
    "hrm_text": BackboneSpec(
        layers="L_module.layers",
        high_layers="H_module.layers",
        norm="H_module.final_norm",
        enter=scale_by_config,
        low_state="z_L_init",
    ),
}

# layers that attend in both directions, which the hierarchical puzzle model runs, and no other
PUZZLE_BACKBONES: dict[str, BackboneSpec] = {
    "hrm_backbone": BackboneSpec(enter=enter_hrm, model_class=HrmBackboneModel),
}

_WIDE_STATE = "its layers pass on more than one state of a token"
_OWN_STATES = "its layers keep what they have read in a place of their own, not in transformers' cache"
_NO_LENGTH = "no layer of it tells the cache how many tokens it has read, so that positions cannot be counted"

# decoders whose layers do more than take one state of every token and give one; no entry could say how to run them
REFUSED_BACKBONES: dict[str, str] = {
    "beam": "layers without rotary positions are given a scale that follows from the position",
    "deepseek_v4": _WIDE_STATE,
    "dory": "it runs its layers in loops itself",
    "falcon_mamba": _NO_LENGTH,
    "gemma3n_text": _WIDE_STATE,
    "hy_v4": _WIDE_STATE,
    "inkling2_loop_text": "it runs its layers in loops itself",
    "inkling2_text": "its layers read what all layers before them gave",
    "longcat_flash": "each of its layers writes two slots of the cache",
    "mamba": _NO_LENGTH,
    "mamba2": _NO_LENGTH,
    "minimax": _OWN_STATES,
    "modernbert-decoder": "its head is more than a linear map",
    "openai-gpt": "it has no cache and no final norm",
    "qwen4_exp_text": _WIDE_STATE,
    "recurrent_gemma": _OWN_STATES,
    "rwkv": _OWN_STATES,
    "xlstm": _OWN_STATES,
    "zaya": "its layers pass the states of their routers on beside those of the tokens",
}

# entries that a user handed in; each is checked before its first use
REGISTERED_BACKBONES: dict[str, BackboneSpec] = {}


def register_backbone(model_type: str, spec: BackboneSpec, exist_ok: bool = False) -> None:
    """Say where an architecture keeps its parts, for this process.

    The entry is checked before its first use, as any entry is that hf_loop does not test.

    Args:
        model_type (`str`): the model type of its configurations.
        spec (`BackboneSpec`): the entry.
        exist_ok (`bool`): whether it may replace one that is there.

    Raises:
        TypeError: `spec` is no `BackboneSpec`.
        ValueError: there is an entry for the model type, and `exist_ok` is False.
    """
    if not isinstance(spec, BackboneSpec):
        raise TypeError(f"`spec` must be a BackboneSpec, got {type(spec).__name__}")
    if not isinstance(model_type, str) or not model_type:
        raise ValueError(f"`model_type` must be the name of a model type, got {model_type!r}")
    tables = (SUPPORTED_BACKBONES, TWO_STACK_BACKBONES, PUZZLE_BACKBONES, REGISTERED_BACKBONES)
    if not exist_ok and any(model_type in table for table in tables):
        raise ValueError(f"`model_type` {model_type!r} has an entry already: give `exist_ok=True` to replace it")
    REGISTERED_BACKBONES[model_type] = spec


def find_spec(config: PreTrainedConfig) -> BackboneSpec:
    """The entry for a configuration, which may not have been checked yet."""
    model_type = config.model_type
    return REGISTERED_BACKBONES.get(model_type) or SUPPORTED_BACKBONES.get(model_type) or LIKE_LLAMA


def is_tested(config: PreTrainedConfig) -> bool:
    """Whether the entry for a configuration is held to the base model by the tests of hf_loop."""
    spec = SUPPORTED_BACKBONES.get(config.model_type)
    return spec is not None and not spec.has_variants and config.model_type not in REGISTERED_BACKBONES


@functools.cache
def _part_names(spec: BackboneSpec) -> tuple[str, ...]:
    names = (spec.embed_tokens, spec.layers, spec.high_layers, spec.norm, spec.low_state, spec.rotary)
    return tuple(name for name in names if name is not None)


def get_part(model: nn.Module, name: str) -> Any:
    """A part of the decoder, which may be inside another one."""
    return operator.attrgetter(name)(model)


def set_part(model: nn.Module, name: str, part: nn.Module) -> None:
    """Put `part` in the place of a part of the decoder."""
    parent, _, leaf = name.rpartition(".")
    setattr(get_part(model, parent) if parent else model, leaf, part)


def missing_parts(model: PreTrainedModel, spec: BackboneSpec) -> list[str]:
    """The parts that an entry names and the decoder does not have."""
    return [name for name in _part_names(spec) if not _has_part(model, name, spec)]


def _has_part(model: PreTrainedModel, name: str, spec: BackboneSpec) -> bool:
    try:
        part = get_part(model, name)
    except AttributeError:
        return False
    # the rotary embedding may be left out by a configuration; what is then missing is only its tables
    return part is not None or name == spec.rotary


__all__ = ["BackboneSpec", "register_backbone"]
