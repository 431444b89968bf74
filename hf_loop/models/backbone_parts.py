# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What an entry of the table says of an architecture, and the parts of a decoder by the names that it gives."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .backbone_steps import enter_unchanged, unchanged


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


__all__ = ["BackboneSpec", "get_part", "missing_parts", "set_part"]
