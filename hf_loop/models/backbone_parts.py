# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The description of an architecture, and access to the parts of a decoder by it."""

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
    """The names of an architecture's parts, and what its own forward does around the layers.

    Args:
        embed_tokens, layers, norm (`str`): names of the parts in the base model, dotted if inside another part.
        rotary (`str`, *optional*): name of the rotary embedding, `None` if there is none.
        enter (`Callable`): computes the first layer's input from the base model, token embeddings and positions.
        enter_head (`Callable`): changes the normed states before the head's linear map, given the configuration.
        finish_logits (`Callable`): changes the logits after the head's linear map, given the configuration.
        layer_arguments (`Callable`, *optional*): makes further arguments of the layers from the base model, the first
            layer's input, the caller's mask, the prepared masks, and the number of tokens in the cache. An
            `attention_mask` among them replaces the prepared masks.
        adds_positions (`bool`): whether only `enter` adds positions, and layers do not.
        has_position_table (`bool`): whether positions are looked up in a table of `max_position_embeddings` rows.
        counts_padding (`bool`): whether default positions count padding, as in most architectures.
        needs_masks (`bool`): whether layers always need a mask, with one row per sequence.
        counts_columns (`bool`): whether layers compute something from the columns of their cache (ALiBi, a mask of
            their own, a selection of tokens), which then must hold all tokens in order.
        rotary_per_layer_type (`bool`): whether the rotary embedding is called once per layer type.
        rotate (`Callable`, *optional*): computes rotary embeddings from the base model, the first layer's input and
            positions, if calling `rotary` is not enough: a dict by layer type, or a list by layer.
        position_rows (`int`): rows of position ids that the rotary embedding takes (3 for temporal, height and width).
        head_bias (`bool`): whether the causal head has a bias.
        head_scale (`bool`): whether it scales the logit of every token, see [`ScaledHead`].
        layers_take_token_ids (`bool`): whether layers look up embeddings of their own.
        layers_take_index (`bool`): whether a call passes the layer's index.
        continues_by_token (`bool`): whether layers with a state can continue from it with single tokens only.
        keeps_fast_weights (`bool`): whether layers can continue from their recurrent state alone, as after a sleep;
            otherwise [`SleepModel`] tests it.
        layer_entry (`str`): name of the first module in a layer that reads its input, beside the residual.
        model_class (`type`, *optional*): class of the base model, if the Auto classes may not find it: code that came
            with a checkpoint has a configuration class of its own.
        run_state (`Callable`, *optional*): runs a layer whose state is more than its hidden states, see
            `block_states.py`, given the base model, the layer's index, the state, the cache slot of the call, and a
            function that calls the layer.
        read_state (`Callable`, *optional*): computes the hidden states that the final norm reads of such a state,
            given the base model.
        high_layers (`str`, *optional*): name of a second stack of layers, which follow those of `layers`.
        low_state (`str`, *optional*): name of the initial state of the first stack.
        has_variants (`bool`): whether the entry does not fit all configurations of the architecture, so that each is
            checked.
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
    has_position_table: bool = False
    counts_padding: bool = True
    needs_masks: bool = False
    counts_columns: bool = False
    rotary_per_layer_type: bool = False
    rotate: Callable[[Any, torch.Tensor, torch.Tensor], Any] | None = None
    position_rows: int = 1
    head_bias: bool = False
    head_scale: bool = False
    layers_take_token_ids: bool = False
    layers_take_index: bool = False
    continues_by_token: bool = False
    keeps_fast_weights: bool = False
    layer_entry: str = "input_layernorm"
    model_class: type[PreTrainedModel] | None = None
    run_state: Callable[[Any, int, torch.Tensor, Any, Callable[..., torch.Tensor]], torch.Tensor] | None = None
    read_state: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    high_layers: str | None = None
    low_state: str | None = None
    has_variants: bool = False


@functools.cache
def _part_names(spec: BackboneSpec) -> tuple[str, ...]:
    names = (spec.embed_tokens, spec.layers, spec.high_layers, spec.norm, spec.low_state, spec.rotary)
    return tuple(name for name in names if name is not None)


def get_part(model: nn.Module, name: str) -> Any:
    """Return a part of the decoder by its dotted name."""
    return operator.attrgetter(name)(model)


def decoder_layers(model: nn.Module, spec: BackboneSpec) -> list[nn.Module]:
    """List the layers of a decoder, those of its second stack last."""
    layers = list(get_part(model, spec.layers))
    return layers if spec.high_layers is None else [*layers, *get_part(model, spec.high_layers)]


def set_part(model: nn.Module, name: str, part: nn.Module) -> None:
    """Replace a part of the decoder."""
    parent, _, leaf = name.rpartition(".")
    setattr(get_part(model, parent) if parent else model, leaf, part)


def missing_parts(model: PreTrainedModel, spec: BackboneSpec) -> list[str]:
    """List the parts of an entry that the decoder does not have."""
    return [name for name in _part_names(spec) if not _has_part(model, name, spec)]


def _has_part(model: PreTrainedModel, name: str, spec: BackboneSpec) -> bool:
    try:
        part = get_part(model, name)
    except AttributeError:
        return False
    # some configurations have no rotary embedding
    return part is not None or name == spec.rotary


__all__ = ["BackboneSpec", "decoder_layers", "get_part", "missing_parts", "set_part"]
