"""Outputs of the looped models: transformers' own, with what the loops did."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
)


@dataclass
class LoopedModelOutputWithPast(BaseModelOutputWithPast):
    """
    Args:
        num_loops (`torch.LongTensor` of shape `(batch_size,)`):
            Loops that were run for each row.
        loop_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_states=True`):
            The state after every loop, each of shape `(batch_size, sequence_length, hidden_size)`.
        loop_hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_hidden_states=True`):
            What `last_hidden_state` would be after every loop: the state through the coda and the final norm.
    """

    num_loops: torch.LongTensor | None = None
    loop_states: tuple[torch.FloatTensor, ...] | None = None
    loop_hidden_states: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class LoopedCausalLMOutputWithPast(CausalLMOutputWithPast):
    """
    Args:
        num_loops (`torch.LongTensor` of shape `(batch_size,)`):
            Loops that were run for each row.
        loop_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_states=True`):
            The state after every loop, each of shape `(batch_size, sequence_length, hidden_size)`.
        loop_logits (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_logits=True`):
            The logits after every loop, each of shape `(batch_size, sequence_length, vocab_size)`.
    """

    num_loops: torch.LongTensor | None = None
    loop_states: tuple[torch.FloatTensor, ...] | None = None
    loop_logits: tuple[torch.FloatTensor, ...] | None = None
