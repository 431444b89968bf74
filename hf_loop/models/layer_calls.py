# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The inputs of layer calls, and special cases of calling some layers."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache

from .class_facts import class_fact


@dataclass(frozen=True)
class LayerInputs:
    """The inputs that all layer calls of one forward pass share.

    Args:
        position_ids (`torch.LongTensor` of shape `[B, T]` or `[1, T]`): position of every token.
        position_embeddings (`tuple`, `dict`, `list` or `None`): rotary cosines and sines, by layer type or by layer if
            they differ.
        masks (`torch.Tensor`, `dict` or `None`): attention masks, by layer type if they differ.
        cache (`Cache`, *optional*): the cache of the whole model.
        use_cache (`bool`): whether layers write to the cache.
        kwargs (`dict`): further keyword arguments of the layers and attention functions.
    """

    position_ids: torch.Tensor
    position_embeddings: Any
    masks: Any
    cache: Cache | None
    use_cache: bool
    kwargs: dict[str, Any]


def reason_not_used(layer: nn.Module) -> str:
    """Explain why a layer may not have used the cache that it was given."""
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return (
            "a layer that is checkpointed by itself drops it. Train without a cache, and switch checkpointing on by "
            "`gradient_checkpointing_enable` of the whole model, not of its backbone"
        )
    return "this release hands the cache to its layers in a way that hf_loop does not know, and results would be wrong"


def of_layer(rotary: Any, layer_type: str | None, index: int) -> Any:
    """Return the rotary embedding of a layer: `rotary` itself, or its entry by layer type or by index."""
    if isinstance(rotary, dict):
        return rotary[layer_type]
    return rotary[index] if isinstance(rotary, list) else rotary


def goes_on(layer_type: str | None, layer_cache: Any, slot: int) -> bool:
    """Return whether a layer continues from a state in the cache."""
    return layer_type == "linear_attention" and layer_cache is not None and layer_cache.has_previous_state(slot)


def run_by_token(layer: Any, hidden_states: torch.Tensor, keywords: dict[str, Any]) -> torch.Tensor:
    """Run a layer token by token, for architectures that continue from a state with single tokens only."""
    mask = keywords["attention_mask"]
    outputs = []
    for token in range(hidden_states.shape[1]):
        chosen = slice(token, token + 1)
        output = layer(
            hidden_states[:, chosen],
            **{**keywords, "attention_mask": None if mask is None else mask[:, chosen]},
        )
        outputs.append(output[0] if isinstance(output, tuple) else output)
    return torch.cat(outputs, dim=1)


@class_fact
def named_arguments(layer_class: type[nn.Module]) -> frozenset[str] | None:
    """Return the names of the arguments that a layer class takes, or `None` if it takes any."""
    parameters = inspect.signature(layer_class.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return frozenset(parameters)


__all__ = ["LayerInputs", "goes_on", "named_arguments", "of_layer", "reason_not_used", "run_by_token"]
