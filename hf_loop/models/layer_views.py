# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Views of layers: copies that compute with an update, without changing the layer.

A *view* is made for one layer call. It consists of shallow copies of the modules from the layer down to those that are
updated; they share every parameter, buffer and hook with the originals, and their forward adds the update. The update
is thus an argument of the call, not a state of the layer. It stays the same when gradient checkpointing runs the call
again (transformers checkpoints a layer's `forward`, so that module hooks do not run again), in other threads, and
under torch.compile (which does not trace context variables).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .module_seams import child_module, inner_forward, is_hooked, module_view, own_parameter, replace_forward


class LinearUpdate(NamedTuple):
    """An addition to a linear map's output, `B A x + bias`, with A `[r, in]`, B `[out, r]` and bias `[out]`."""

    lora_A: torch.Tensor | None = None
    lora_B: torch.Tensor | None = None
    bias: torch.Tensor | None = None


# parameter name -> difference `[d]`, for a module whose parameters are vectors, such as a norm
VectorUpdates = dict[str, torch.Tensor]


class LeadingStates(NamedTuple):
    """Hidden states `[B, f, D]` that replace the first positions of a module's input."""

    states: torch.Tensor


Update = LinearUpdate | VectorUpdates | LeadingStates
# dotted name of a module inside the layer -> its update
LayerUpdates = dict[str, Update]


def updated_view(module: nn.Module, updates: LayerUpdates) -> nn.Module:
    """Make a view of `module` in which the submodules named by `updates` compute with their update.

    Raises:
        ValueError: if a module was replaced or wrapped, so that the update cannot reach it.
    """
    if "" in updates:
        return _updated_leaf(module, updates[""])
    by_child: dict[str, LayerUpdates] = {}
    for name, update in updates.items():
        child, _, rest = name.partition(".")
        by_child.setdefault(child, {})[rest] = update
    children = {}
    for name, child_updates in by_child.items():
        child = child_module(module, name)
        if child is None:
            raise ValueError(
                f"the per-loop LoRA cannot reach {name!r} inside {type(module).__name__}, which replaces or wraps the "
                "backbone's own module"
            )
        children[name] = updated_view(child, child_updates)
    return module_view(module, children)


def _updated_leaf(module: nn.Module, update: Update) -> nn.Module:
    view = module_view(module)
    if isinstance(update, LinearUpdate):
        return replace_forward(view, _linear_forward(module, update))
    if isinstance(update, LeadingStates):
        return replace_forward(view, _leading_states_forward(module, update))
    return replace_forward(view, _vector_forward(module, update), inside_hooks=True)


def read_weight(module: nn.Module, name: str) -> torch.Tensor:
    """Read a weight outside of its module's forward, through accelerate's hooks if the weight is offloaded."""
    if not is_hooked(module):
        return getattr(module, name)
    return replace_forward(module_view(module), lambda: getattr(module, name), inside_hooks=True).forward()


def _leading_states_forward(module: nn.Module, update: LeadingStates) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, *args, **kwargs):
        rest = hidden_states[:, update.states.shape[1] :]
        return module.forward(torch.cat([update.states, rest], dim=1), *args, **kwargs)

    return forward


def _linear_forward(module: nn.Module, update: LinearUpdate) -> Callable[..., torch.Tensor]:
    # `module` may be a PEFT adapter around the linear map: the update is added to the output of both
    def forward(hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        output = module.forward(hidden_states, *args, **kwargs)
        device = hidden_states.device
        if update.lora_A is not None and update.lora_B is not None:
            low = nn.functional.linear(hidden_states.to(update.lora_A.dtype), update.lora_A.to(device))
            output = output + nn.functional.linear(low, update.lora_B.to(device)).to(output.dtype)
        if update.bias is not None:
            output = output + update.bias.to(output)
        return output

    return forward


def _vector_forward(module: nn.Module, updates: VectorUpdates) -> Callable[..., Any]:
    def forward(*args, **kwargs):
        # computed in the call: before it FSDP may hold only a part of the parameters, and offloading none
        parameters = {}
        for name, difference in updates.items():
            parameter = own_parameter(module, name)
            if parameter is None:
                raise ValueError(
                    f"the per-loop LoRA cannot reach the {name} of {type(module).__name__}, which replaces or wraps "
                    "the backbone's own module"
                )
            parameters[name] = parameter + difference.to(parameter)
        return inner_forward(module_view(module, parameters=parameters))(*args, **kwargs)

    return forward


__all__ = ["LayerUpdates", "LeadingStates", "LinearUpdate", "VectorUpdates", "read_weight", "updated_view"]
