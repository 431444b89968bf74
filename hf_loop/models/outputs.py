# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Output classes of the models: transformers' own, with the states of loops and memories."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .transformers_seams import CacheNames, selected_indices


# ty: `CacheNames` has the property only under releases whose output has no such field
@dataclass
class RecurrentModelOutputWithPast(CacheNames, BaseModelOutputWithPast):  # ty: ignore[incompatible-property-override]
    """
    Args:
        cache (`Cache`, *optional*, with `use_cache=True`):
            The cache for later calls; `past_key_values` is its older name.
    """


@dataclass
class RecurrentCausalLMOutputWithPast(CacheNames, CausalLMOutputWithPast):  # ty: ignore[incompatible-property-override]
    """
    Args:
        cache (`Cache`, *optional*, with `use_cache=True`):
            The cache for later calls; `past_key_values` is its older name.
    """


@dataclass
class LoopedModelOutputWithPast(RecurrentModelOutputWithPast):
    """
    Args:
        num_loops (`torch.LongTensor` of shape `(batch_size,)`):
            Largest number of loops that was run for a token of each sequence.
        exit_loops (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*, with `exit_criterion`):
            Number of loops after which every token exited.
        loop_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_states=True`):
            The state after every loop, each of shape `(batch_size, sequence_length, hidden_size)`.
        loop_hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_hidden_states=True`):
            The state after every loop, each through the coda and the final norm, as `last_hidden_state` is.
        contrast_hidden_state (`torch.FloatTensor`, *optional*, with `contrast_loop`):
            `last_hidden_state` as it is after that loop.
    """

    num_loops: torch.Tensor | None = None
    exit_loops: torch.Tensor | None = None
    loop_states: tuple[torch.Tensor, ...] | None = None
    loop_hidden_states: tuple[torch.Tensor, ...] | None = None
    contrast_hidden_state: torch.Tensor | None = None


@dataclass
class LoopedCausalLMOutputWithPast(RecurrentCausalLMOutputWithPast):
    """
    Args:
        num_loops (`torch.LongTensor` of shape `(batch_size,)`):
            Largest number of loops that was run for a token of each sequence.
        exit_loops (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*, with `exit_criterion`):
            Number of loops after which every token exited.
        loop_states (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_states=True`):
            The state after every loop, each of shape `(batch_size, sequence_length, hidden_size)`.
        loop_logits (`tuple(torch.FloatTensor)`, *optional*, with `output_loop_logits=True`):
            The logits after every loop, each of shape `(batch_size, sequence_length, vocab_size)`.
        contrast_logits (`torch.FloatTensor`, *optional*, with `contrast_loop`):
            The logits after that loop, of the shape of `logits`.
    """

    num_loops: torch.Tensor | None = None
    exit_loops: torch.Tensor | None = None
    loop_states: tuple[torch.Tensor, ...] | None = None
    loop_logits: tuple[torch.Tensor, ...] | None = None
    contrast_logits: torch.Tensor | None = None


@dataclass
class SpeculationOutput(CacheNames, GenerateDecoderOnlyOutput):  # ty: ignore[incompatible-property-override]
    """
    What `generate` returns with `draft_loops` and `return_dict_in_generate=True`.

    Args:
        tokens_per_verification (`torch.LongTensor` of shape `(verifications,)`):
            Number of tokens that every verification added to the text: the drafted tokens that the full model chose,
            too, and one more.
    """

    tokens_per_verification: torch.Tensor | None = None


@dataclass
class FeedbackModelOutputWithPast(RecurrentModelOutputWithPast):
    """
    Args:
        feedback (`torch.FloatTensor` of shape `(sequences, num_calls, feedback_length, hidden_size)`, *optional*):
            Without a cache, the memory of every sequence (or packed document) after its last complete block; zero for
            one without a complete block.
    """

    feedback: torch.Tensor | None = None


@dataclass
class FeedbackCausalLMOutputWithPast(RecurrentCausalLMOutputWithPast):
    """
    Args:
        feedback (`torch.FloatTensor` of shape `(sequences, num_calls, feedback_length, hidden_size)`, *optional*):
            Without a cache, the memory of every sequence (or packed document) after its last complete block; zero for
            one without a complete block.
    """

    feedback: torch.Tensor | None = None


def wants_hidden_states(output_hidden_states: Any) -> bool:
    """Return whether any hidden state was requested, by a flag or by indices."""
    return bool(output_hidden_states) or (isinstance(output_hidden_states, int) and output_hidden_states is not False)


def select_hidden_states(
    hidden_states: tuple[torch.Tensor, ...], output_hidden_states: Any
) -> tuple[torch.Tensor | None, ...] | None:
    """Keep the requested hidden states, with `None` in place of others, as transformers does.

    Args:
        hidden_states (`tuple(torch.FloatTensor)`): all hidden states, from the first layer's input on.
        output_hidden_states (`bool`, `int` or `list[int]`): all, none, or indices.
    """
    if not wants_hidden_states(output_hidden_states):
        return None
    chosen = selected_indices(output_hidden_states, len(hidden_states))
    return tuple(state if index in chosen else None for index, state in enumerate(hidden_states))
