# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A hook around every layer call of a model, which is told the loop: to record, replace or skip what a call computes.

Module hooks of torch run at every loop alike and cannot tell one from another. Every family runs its layers through
`Backbone.run_call`, so that one hook there serves all of them.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .backbone import Backbone
from .schedules import Call


# calls a layer, or a view of it, on hidden states `[B, T, D]` and returns those after it
RunLayer = Callable[[nn.Module, torch.Tensor], torch.Tensor]
CallHook = Callable[[Call, nn.Module, torch.Tensor, RunLayer], torch.Tensor]


@contextmanager
def hook_calls(model: Any, hook: CallHook) -> Generator[None]:
    """Run `hook` in place of every layer call of `model` inside the `with` block.

    Under a time schedule the rows of memory are among the hidden states: a feedback model puts those of the memory
    first and, where a block completes, others last.

    Args:
        model (`PreTrainedModel`): a model of any family, with or without a head, that is not compiled.
        hook (`Callable`): takes the [`Call`], the layer, its input `[B, T, D]`, and a function that runs a layer on an
            input; returns the output of the call. `run_layer(layer, hidden_states)` changes nothing.

    Raises:
        ValueError: if another hook is at work, the model is compiled, or its layers pass on more than hidden states.
    """
    headless = model.base_model
    backbone = Backbone(headless)
    decoder: Any = backbone.model
    if backbone.spec.run_state is not None:
        raise ValueError(
            f"layer calls of a {decoder.config.model_type} decoder cannot be hooked: what its layers pass on is more "
            "than hidden states"
        )
    if getattr(headless, "parts", None) is not None:
        raise ValueError("layer calls of a compiled model cannot be hooked; load the model again")
    if getattr(decoder, "call_hook", None) is not None:
        raise ValueError("layer calls of this model are hooked already; leave the other `with` block first")
    decoder.call_hook = hook
    try:
        yield
    finally:
        decoder.call_hook = None


__all__ = ["CallHook", "RunLayer", "hook_calls"]
