# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The layer calls of one pass of a looped model under a cache policy."""

import copy
import dataclasses
from typing import Any

import torch

from .layer_calls import LayerInputs
from .loop_cache import CachePass, CachePolicy
from .schedules import Call
from .transformers_seams import attention_function, create_masks_for_generate, named_cache


class LoopCalls:
    """Runs layer calls with the slot and the mask that a cache policy gives them.

    Args:
        backbone (`Backbone`): runs a layer call.
        inputs (`LayerInputs`): the inputs that all layer calls share.
        window_masks (`torch.Tensor`, *optional*): the mask of the loops after the first, by default that of all calls.
    """

    def __init__(self, backbone: Any, inputs: LayerInputs, window_masks: torch.Tensor | None = None):
        self.backbone = backbone
        self.inputs = self.later_inputs = inputs
        if window_masks is not None:
            self.later_inputs = dataclasses.replace(inputs, masks=window_masks)
        self.cache_pass = None if inputs.cache is None else CachePass(inputs.cache)

    def inputs_of(self, call: Call) -> LayerInputs:
        """Return the inputs of a layer call."""
        return self.later_inputs if call.loop else self.inputs

    def run_call(self, call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run one layer call on hidden states `[B, T, D]`."""
        view = None if self.cache_pass is None else self.cache_pass.view(call)
        return self.backbone.run_call(call, hidden_states, self.inputs_of(call), layer_cache=view)


def loop_calls(
    backbone: Any, inputs: LayerInputs, embeddings: torch.Tensor, mask: Any, policy: CachePolicy
) -> LoopCalls:
    """Make the layer calls of a pass.

    Args:
        backbone (`Backbone`): runs a layer call.
        inputs (`LayerInputs`): the inputs that all layer calls share.
        embeddings (`torch.Tensor` of shape `[B, T, D]`): the first layer's input.
        mask (`torch.Tensor`, *optional*): the padding mask `[B, T]`.
        policy (`CachePolicy`): the policy.

    Raises:
        ValueError: if the policy does not work with the decoder or its attention function.
    """
    if policy.window is None:
        return LoopCalls(backbone, inputs)
    return LoopCalls(backbone, inputs, window_masks(backbone, inputs, embeddings, mask, policy.window))


def window_masks(
    backbone: Any, inputs: LayerInputs, embeddings: torch.Tensor, mask: Any, window: int
) -> torch.Tensor | None:
    """Make the mask of layer calls that see the last `window` positions only; other arguments as above.

    Raises:
        ValueError: if the decoder's attention is not full, or its function makes no use of such a mask.
    """
    others = set(backbone.layer_types or ()) - {"full_attention"}
    if others or getattr(backbone.config, "sliding_window", None) is not None or isinstance(mask, dict):
        found = ", ".join(sorted(others)) or "a window of its own"
        raise ValueError(f"a window on later loops needs a decoder with full attention, got {found}")
    function = attention_function(backbone.config)
    if function not in ("eager", "sdpa"):
        raise ValueError(f"a window on later loops needs the attention function 'eager' or 'sdpa', got {function!r}")
    config = copy.copy(backbone.config)
    # set directly: this copy only tells how to make masks
    vars(config).update(layer_types=["sliding_attention"], sliding_window=window)
    masks = create_masks_for_generate(
        config=config,
        inputs_embeds=embeddings,
        attention_mask=mask,
        **named_cache(inputs.cache),
        position_ids=inputs.position_ids,
    )
    return masks["sliding_attention"]


__all__ = ["LoopCalls", "loop_calls"]
