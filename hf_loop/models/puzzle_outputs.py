# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Outputs of the puzzle model, and the carry between its segments."""

from dataclasses import dataclass, fields

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class HierarchicalCarry(ModelOutput):
    """
    The states that the next segment starts from. Puzzles with `steps` 0 start from the initial states instead: to
    replace a puzzle of the batch by a new one, set its `steps` to 0.

    Args:
        high (`torch.Tensor` of shape `(batch_size, puzzle_tokens + cells, hidden_size)`):
            The slow state, or the only one.
        steps (`torch.LongTensor` of shape `(batch_size,)`):
            Number of segments that each puzzle has run.
        low (`torch.Tensor` of the shape of `high`, *optional*):
            The fast state, if there are two.
    """

    high: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    low: torch.Tensor | None = None

    def map(self, function) -> "HierarchicalCarry":
        """Apply `function` to every tensor."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return HierarchicalCarry(**{name: function(tensor) for name, tensor in named.items() if tensor is not None})


@dataclass
class HierarchicalSegmentOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, puzzle_tokens + cells, hidden_size)`):
            The final states, which the heads read.
        carry (`HierarchicalCarry`):
            The states that the next segment starts from, without gradient.
        change (`torch.Tensor` of shape `(batch_size,)`):
            Norm of the slow state's change over the segment, divided by its norm before the segment.
    """

    last_hidden_state: torch.Tensor | None = None
    carry: HierarchicalCarry | None = None
    change: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HierarchicalPuzzleOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor`, *optional*):
            Loss of the last segment, if there are labels.
        logits (`torch.Tensor` of shape `(batch_size, cells, vocab_size)`):
            Logits of the last segment.
        halt_logits (`torch.Tensor` of shape `(batch_size, 1)` or `(batch_size, 2)`, *optional*):
            Halting logits of the last segment: with `halting="q_learning"` the values of halting and of continuing;
            with `"binary"` and `"fixed_point"` a number that is above zero if the puzzle halts.
        carry (`HierarchicalCarry`):
            The states that the next segment starts from, without gradient.
        segment_logits, segment_halt_logits (`tuple(torch.Tensor)`, *optional*, with `output_segments=True`):
            Logits and halting logits of every segment.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    halt_logits: torch.Tensor | None = None
    carry: HierarchicalCarry | None = None
    segment_logits: tuple[torch.Tensor, ...] | None = None
    segment_halt_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["HierarchicalCarry", "HierarchicalPuzzleOutput", "HierarchicalSegmentOutput"]
