# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The plan of one chunk of the feedback schedule, made on the host and shared by all layers.

For block t of layer l, with F the memory that this layer computed from block t-1 (Algorithm 2 of
https://huggingface.co/papers/2404.09173):

    queries of the layer call    [F ; tokens]
    a token sees                 the kept segments, F, and its block up to itself
    a query of F sees            F and the whole block, not the segments
    the new F                    the layer's output at the queries of F

The keys of F are cached beside those of the segments. Decoding token by token therefore runs the queries of F only
with the token that completes a block, and with the first token of the next block, because F then needs new keys.

Recurrent memory tokens, the baseline, differ in three ways: the queries before the tokens (the lead) are only read,
queries after the tokens (the tail) compute the memory, and it goes from the last layer to the first.

Shapes: R sequences, n tokens of a chunk, f vectors of memory, D hidden size, H heads of keys. The keys of past tokens
are in a ring buffer of W entries, token i of a sequence at index `i % W`; with m segments of b tokens kept, W stops
growing at `(m + 1) * b`, and block t then overwrites block `t - m - 1`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .configuration_feedback import FeedbackConfig
from .token_sequences import Chunk, plan_chunks


# decoding grows the ring buffer by this many entries at a time, because growing copies it
RING_GROWTH = 64


@dataclass(frozen=True)
class BlockPlan:
    """The queries of a layer call, and where its keys and values are written.

    Args:
        num_lead (`int`): memory queries before the tokens, `f` or 0.
        num_tokens (`int`): tokens, `n`.
        num_tail (`int`): memory queries after the tokens, `f` or 0.
        feedback_length (`int`): f.
        block_size (`int`): b.
        capacity (`int`): W.
        first_index (`int`, *optional*): ring-buffer index of the first token, if it is the same in all sequences.
        ring_index (`torch.LongTensor` of shape `[R, n]`, *optional*): ring-buffer index of every token otherwise.
        is_token (`torch.BoolTensor` of shape `[R, n]`, *optional*): `False` beyond the tokens of a shorter sequence.
        has_tokens (`torch.BoolTensor` of shape `[R, 1, 1]`): whether each sequence has tokens in this chunk.
        is_first (`torch.BoolTensor` of shape `[R, 1, 1]`): whether each sequence has no memory yet.
        completes (`torch.BoolTensor` of shape `[R, 1, 1]`): whether each sequence completes a block with this chunk.
        any_first, any_completes (`bool`): whether this is true of any sequence.
    """

    num_lead: int
    num_tokens: int
    num_tail: int
    feedback_length: int
    block_size: int
    capacity: int
    first_index: int | None
    ring_index: torch.Tensor | None
    is_token: torch.Tensor | None
    has_tokens: torch.Tensor
    is_first: torch.Tensor
    completes: torch.Tensor
    any_first: bool
    any_completes: bool

    @property
    def query_counts(self) -> list[int]:
        """Number of queries in the lead, the tokens and the tail."""
        return [self.num_lead, self.num_tokens, self.num_tail]


def plan_block(
    config: FeedbackConfig,
    chunk: Chunk,
    capacity: int,
    has_feedback: list[bool],
    keys_are_stale: list[bool],
    device: torch.device,
) -> BlockPlan:
    """Plan a chunk.

    Args:
        config (`FeedbackConfig`): configuration of the model.
        chunk (`Chunk`): the tokens to run.
        capacity (`int`): current size of the ring buffer; the plan enlarges it if needed.
        has_feedback (`list[bool]`): whether each sequence has a memory.
        keys_are_stale (`list[bool]`): whether each sequence's memory has changed since its keys were computed.
        device (`torch.device`): device of the tokens.
    """
    length = config.feedback_length
    completes = [count > 0 and end % config.block_size == 0 for count, end in zip(chunk.counts, chunk.ends)]
    is_updated = length > 0 and any(completes)
    is_stale = length > 0 and any(
        stale and has and count for stale, has, count in zip(keys_are_stale, has_feedback, chunk.counts)
    )
    num_lead, num_tail = memory_queries(config, is_updated, is_stale)
    is_aligned = chunk.is_aligned and len(set(has_feedback)) == 1
    capacity = _ring_capacity(config, capacity, chunk)
    ring_index = is_token = None
    if not is_aligned:
        token = torch.arange(chunk.num_tokens)
        ring_index = ((torch.tensor(chunk.seen)[:, None] + token) % capacity).to(device)
        is_token = (token < torch.tensor(chunk.counts)[:, None]).to(device)
    return BlockPlan(
        num_lead=num_lead,
        num_tokens=chunk.num_tokens,
        num_tail=num_tail,
        feedback_length=length,
        block_size=config.block_size,
        capacity=capacity,
        first_index=chunk.seen[0] % capacity if is_aligned else None,
        ring_index=ring_index,
        is_token=is_token,
        has_tokens=_per_sequence([count > 0 for count in chunk.counts], device),
        is_first=~_per_sequence(has_feedback, device),
        completes=_per_sequence(completes, device),
        any_first=not all(has_feedback),
        any_completes=any(completes),
    )


def memory_queries(config: FeedbackConfig, is_updated: bool, is_stale: bool) -> tuple[int, int]:
    """Return the number of memory queries before and after the tokens of a chunk.

    Args:
        config (`FeedbackConfig`): configuration of the model.
        is_updated (`bool`): whether the chunk completes a block, whose memory it then computes.
        is_stale (`bool`): whether there is a memory that has changed since its keys were computed.
    """
    length, is_from_layer = config.feedback_length, config.feedback_source == "layer"
    lead = length if is_stale or (is_updated and is_from_layer) else 0
    return lead, 0 if is_from_layer or not is_updated else length


class ChunkSize(NamedTuple):
    """The size of a chunk of one sequence: the memory queries before and after its tokens, the tokens, the keys."""

    num_lead: int
    num_tokens: int
    num_tail: int
    num_keys: int


def chunk_sizes(config: FeedbackConfig, steps: Iterable[int], has_memory: bool) -> Iterator[ChunkSize]:
    """Yield the sizes of the chunks of one sequence, without running them.

    Args:
        config (`FeedbackConfig`): configuration of the model.
        steps (`Iterable[int]`): numbers of tokens that one forward pass after the other reads, with a cache.
        has_memory (`bool`): whether the sequence starts from a memory.
    """
    is_stale, capacity, seen = True, 0, 0
    for num_tokens in steps:
        for chunk in plan_chunks([num_tokens], [seen], config.block_size, keep_all=True):
            is_complete = chunk.ends[0] % config.block_size == 0
            lead, tail = memory_queries(config, is_complete, has_memory and is_stale)
            capacity = _ring_capacity(config, capacity, chunk)
            yield ChunkSize(lead, chunk.num_tokens, tail, config.feedback_length + capacity + tail)
            is_stale = is_complete or (is_stale and not lead)
            has_memory = has_memory or is_complete
        seen += num_tokens


def _ring_capacity(config: FeedbackConfig, current: int, chunk: Chunk) -> int:
    needed = max(chunk.ends)
    if needed <= current:
        return current
    if chunk.num_tokens == 1:
        needed = max(needed, current + RING_GROWTH)
    if config.num_memory_segments is None:
        return needed
    return min(needed, (config.num_memory_segments + 1) * config.block_size)


def _per_sequence(flags: list[bool], device: torch.device) -> torch.Tensor:
    return torch.tensor(flags, device=device)[:, None, None]
