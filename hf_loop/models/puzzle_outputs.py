# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Outputs of the puzzle model, and the carry that its segments hand on."""

from dataclasses import dataclass, fields

import torch
from transformers.modeling_outputs import ModelOutput


@dataclass
class HierarchicalCarry(ModelOutput):
    """
    Where the next segment starts. A row with `steps` 0 starts anew, whatever its states are: to put a new puzzle into
    a row, set its `steps` to 0.

    Args:
        high (`torch.Tensor` of shape `(batch_size, puzzle_tokens + cells, hidden_size)`):
            The slow state, or the only one.
        steps (`torch.LongTensor` of shape `(batch_size,)`):
            Segments that the row has run.
        low (`torch.Tensor` of the shape of `high`, *optional*):
            The fast state, where there are two.
    """

    high: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    low: torch.Tensor | None = None

    def map(self, function) -> "HierarchicalCarry":
        """The carry with every tensor replaced by what `function` makes of it."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return HierarchicalCarry(**{name: function(tensor) for name, tensor in named.items() if tensor is not None})


@dataclass
class HierarchicalSegmentOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, puzzle_tokens + cells, hidden_size)`):
            What the heads read.
        carry (`HierarchicalCarry`):
            Where the next segment starts.
        change (`torch.Tensor` of shape `(batch_size,)`):
            Length of the slow state's change over the segment, as a share of its own.
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
            Of the last segment, with labels.
        logits (`torch.Tensor` of shape `(batch_size, cells, vocab_size)`):
            Of the last segment.
        halt_logits (`torch.Tensor` of shape `(batch_size, 1)` or `(batch_size, 2)`, *optional*):
            Of the last segment: with `halting="q_learning"` the values of halting and of going on; with `"binary"`
            and `"fixed_point"` a number that is above zero where the row is done.
        carry (`HierarchicalCarry`):
            Where the next segment starts, without gradient.
        segment_logits, segment_halt_logits (`tuple`, *optional*, with `output_segments=True`):
            The same after every segment.
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
