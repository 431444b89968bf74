# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Contrast of the last loop's prediction with that of an earlier loop, without training ("LoopCD").

What the later loops have made more probable is made more probable still
(https://huggingface.co/papers/2609.24196). The formula is that of contrastive decoding, with the earlier loop in the
place of the small model: scores `(1 + w) log p_last - w log p_earlier` (https://huggingface.co/papers/2309.09117), and
only tokens whose probability after the last loop is at least a share of the best token's
(https://huggingface.co/papers/2210.15097).
"""

import math
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.cache_utils import DynamicLayer

from .checks import check_count
from .exit_pass import ReadSlot
from .loop_calls import LoopCalls
from .schedules import Call


DEFAULT_WEIGHT = 0.5


class LoopContrast(LogitsProcessor):
    """Turns the scores of the last loop into those of the contrast.

    Args:
        weight (`float`, *optional*, defaults to 0.5): weight `w` of the earlier loop.
        plausibility (`float`, *optional*, defaults to 0.1): the share of the best token's probability that a token
            must have after the last loop.
    """

    def __init__(self, weight: float = DEFAULT_WEIGHT, plausibility: float = 0.1):
        self.weight, self.plausibility = weight, plausibility
        # logits `[B, V]` of the earlier loop, put here before every call
        self.earlier_logits: Any = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        last = scores.log_softmax(dim=-1)
        earlier = self.earlier_logits.to(device=scores.device, dtype=scores.dtype).log_softmax(dim=-1)
        is_plausible = last >= last.amax(dim=-1, keepdim=True) + math.log(self.plausibility)
        contrast: Any = (1 + self.weight) * last - self.weight * earlier
        return contrast.masked_fill(~is_plausible, -math.inf)


def check_weight(contrast_weight: Any, contrast_loop: int | None) -> float:
    """Return the weight of the earlier loop, by default 0.5; 0 without a contrast.

    Args:
        contrast_weight (`float`, *optional*): the argument of `generate`.
        contrast_loop (`int`, *optional*): the argument that it needs.

    Raises:
        ValueError: if the weight is no finite number of at least 0, or is given without a loop.
    """
    if contrast_loop is None:
        if contrast_weight is not None:
            raise ValueError(f"`contrast_weight` needs a `contrast_loop`, got contrast_weight={contrast_weight!r}")
        return 0.0
    if contrast_weight is None:
        return DEFAULT_WEIGHT
    is_number = isinstance(contrast_weight, int | float) and not isinstance(contrast_weight, bool)
    # written so that NaN is refused too
    if not (is_number and 0 <= contrast_weight < math.inf):
        raise ValueError(f"`contrast_weight` must be a number of at least 0, got {contrast_weight!r}")
    return float(contrast_weight)


def check_contrast(contrast_loop: Any, num_loops: int, has_exits: bool, calls: LoopCalls, coda: list[Call]) -> None:
    """Refuse a loop to contrast with that cannot be read.

    Args:
        contrast_loop (`int`): the loop, from 1.
        num_loops (`int`): loops of the pass.
        has_exits (`bool`): whether tokens exit by a rule.
        calls (`LoopCalls`): the layer calls of the pass.
        coda (`list[Call]`): those of the coda.

    Raises:
        ValueError: if the loop is none before the last, tokens exit, or the cache cannot be read without writing.
    """
    if has_exits:
        raise ValueError(f"`contrast_loop` must be None with `exit_criterion`, got {contrast_loop!r}")
    if check_count("contrast_loop", contrast_loop) >= num_loops:
        raise ValueError(f"`contrast_loop` must be less than num_loops={num_loops}, got {contrast_loop!r}")
    if calls.cache_pass is None or not coda:
        return
    layers: Any = getattr(calls.cache_pass.cache, "layers", None)
    slots = [calls.cache_pass.slot(call) for call in coda]
    is_dynamic = layers is not None and all(
        isinstance(layers[slot], DynamicLayer) for slot in slots if slot < len(layers)
    )
    if not is_dynamic or getattr(calls.cache_pass.cache, "offloading", False):
        kind = type(calls.cache_pass.cache).__name__
        raise ValueError(f"`contrast_loop` needs a dynamic cache of attention layers on one device, got {kind}")


def read_earlier_loop(schedule: Any, calls: LoopCalls, state: torch.Tensor) -> torch.Tensor:
    """Return what the head reads of the state after an earlier loop, `[B, T, D]`, before the coda's own calls.

    Nothing is kept of these calls of the coda: later tokens read what the last loop made of earlier ones.

    Args:
        schedule (`LoopedDepth`): the schedule.
        calls (`LoopCalls`): the layer calls of the pass.
        state (`torch.Tensor` of shape `[B, T, D]`): the state after the loop.
    """

    def read_call(call: Call, hidden_states: torch.Tensor) -> torch.Tensor:
        if calls.cache_pass is None:
            return calls.run_call(call, hidden_states)
        view = ReadSlot(calls.cache_pass.cache, calls.cache_pass.slot(call))
        return calls.backbone.run_call(call, hidden_states, calls.inputs_of(call), layer_cache=view)

    return schedule.finish(schedule.run_coda(state, read_call))


__all__ = ["LoopContrast", "check_contrast", "check_weight", "read_earlier_loop"]
