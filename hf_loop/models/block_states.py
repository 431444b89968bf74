# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""States of several vectors per token: the hidden states, and the block states that the layers of Inkling-2 read.

Such a state is one tensor `[B, T, S * D]`, in which its vectors lie side by side. A schedule therefore passes it on as
it passes on hidden states `[B, T, D]`; only the call of a layer takes it apart. The vectors are, in this order:

    the hidden states after the last layer
    the block states: the input of the first layer of every block before the next layer, the embeddings first
    inside a later loop: what the loop before left, from which messages are computed, see [`MessageInjection`]

Formulas are those of transformers' `inkling2_loop` (5.24).
"""

from collections.abc import Callable
from typing import Any

import torch


def run_on_blocks(
    model: Any, index: int, state: torch.Tensor, cache: Any, run_layer: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Run one layer on a state.

    Args:
        model (`PreTrainedModel`): the decoder.
        index (`int`): index of the layer.
        state (`torch.Tensor` of shape `[B, T, S * D]`): the state before the layer.
        cache (`CacheSlot`, *optional*): the cache slot of the call.
        run_layer (`Callable`): calls the layer on hidden states `[B, T, D]`, with further arguments by name.

    Returns:
        `torch.Tensor` of shape `[B, T, S' * D]`: the state after the layer.
    """
    config = model.config
    first_core, end_core = config.loop_layer_index_start, config.loop_layer_index_end
    block_length = config.n_layers_per_attn_res_block
    num_blocks = -(-index // block_length)
    hidden_states, states = _take_apart(state, config.hidden_size)
    block_states, previous = states[..., :num_blocks, :], states[..., num_blocks:, :]
    arguments = {"block_states": block_states, "relative_distance": _distances(hidden_states, cache)}
    if previous.shape[-2]:
        before, last = previous[..., :-1, :], previous[..., -1, :]
        arguments["messages"] = model.message_input(before, last, index - first_core)
    output = run_layer(hidden_states, **arguments)
    parts = [output.unsqueeze(-2), block_states]
    if index % block_length == 0:
        parts.append(hidden_states.unsqueeze(-2))
    # no layer after the core reads what an earlier loop left
    if index + 1 < end_core:
        parts.append(previous)
    return torch.cat([part.to(output.device) for part in parts], dim=-2).flatten(-2)


def read_blocks(model: Any, state: torch.Tensor) -> torch.Tensor:
    """Compute the hidden states `[B, T, D]` that the final norm reads of the state after the last layer."""
    hidden_states, block_states = _take_apart(state, model.config.hidden_size)
    return model.final_input(block_states, hidden_states)[0]


def _take_apart(state: torch.Tensor, hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states `[B, T, D]` and the other vectors of a state `[B, T, S - 1, D]`."""
    vectors = state.unflatten(-1, (-1, hidden_size))
    return vectors[..., 0, :], vectors[..., 1:, :]


def _distances(hidden_states: torch.Tensor, cache: Any) -> torch.Tensor:
    """Return how far back every key lies from every query, `[T, K]`; those in the cache come first."""
    num_queries = num_keys = hidden_states.shape[1]
    first_query = first_key = 0
    if cache is not None:
        (num_keys, first_key), first_query = cache.get_mask_sizes(num_queries, 0), cache.get_query_offset(0)
    queries = torch.arange(num_queries, device=hidden_states.device) + first_query
    keys = torch.arange(num_keys, device=hidden_states.device) + first_key
    return queries[:, None] - keys[None, :]


__all__ = ["read_blocks", "run_on_blocks"]
