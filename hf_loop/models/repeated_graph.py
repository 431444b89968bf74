# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Calls of one compiled graph in the loops of a pass, without looking for the graph every time."""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import StaticLayer

from .compile_seams import GraphCall


class RepeatedGraph(NamedTuple):
    """The graph of the core as it was called in one loop. In later loops of the pass it can be called directly.

    torch finds the graph of a call by checking every module and tensor that it depends on, which takes longer than a
    small layer. Between loops of one pass only the tensors of [`loop_tensors`] change.

    Args:
        call (`GraphCall`): the call of that loop.
        own (`list[torch.Tensor]`): the loop's own tensors.
        places (`list[list[int]]`): for every one of these tensors, which arguments of the graph it is.
    """

    call: GraphCall
    own: list[torch.Tensor]
    places: list[list[int]]

    def takes(self, own: list[torch.Tensor]) -> bool:
        """Return whether the graph is that of another loop, with tensors `own`."""
        if torch.is_grad_enabled() or len(own) != len(self.own) or not own[0].is_contiguous():
            return False
        for tensor, other in zip(own, self.own):
            if tensor.shape != other.shape or tensor.dtype != other.dtype or tensor.device != other.device:
                return False
        return True

    def run(self, own: list[torch.Tensor]) -> torch.Tensor:
        """Run the loop with tensors `own` and return the state after it, `[B, T, D]`."""
        args = list(self.call.args)
        for tensor, places in zip(own, self.places):
            for place in places:
                args[place] = tensor
        return self.call.function(*args)[0]


def loop_tensors(state: torch.Tensor, layers: list[Any] | None, update: torch.Tensor | None) -> list[torch.Tensor]:
    """List the tensors that differ between the loops of a pass."""
    tensors = [state] if update is None else [state, update]
    for layer in layers or []:
        if type(layer) is StaticLayer:
            tensors += (layer.keys, layer.values, layer.cumulative_length)
    return tensors


def repeat_graph(calls: list[GraphCall], own: list[torch.Tensor], updated: torch.Tensor) -> RepeatedGraph | None:
    """Return the graph of a loop if later loops can call it, else `None`.

    Args:
        calls (`list[GraphCall]`): the calls of graphs in that loop.
        own (`list[torch.Tensor]`): the loop's own tensors.
        updated (`torch.Tensor` of shape `[B, T, D]`): the state after the loop.
    """
    # with a break there are several graphs, and with another result Python comes after the graph
    if len(calls) != 1 or len(calls[0].outputs) != 1 or calls[0].outputs[0] is not updated:
        return None
    places = [[place for place, arg in enumerate(calls[0].args) if arg is tensor] for tensor in own]
    # each is an argument: the graph was made of these tensors and not of something computed from them
    return RepeatedGraph(calls[0], own, places) if all(places) else None


__all__ = ["RepeatedGraph", "loop_tensors", "repeat_graph"]
