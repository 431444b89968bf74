# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What one round of the feedback schedule does, decided on the host and the same for all layers.

For block t of layer l, with F the memory that this layer made of block t-1 (Algorithm 2 of
https://huggingface.co/papers/2404.09173):

    rows of the layer call    [F ; tokens]
    a token sees              the kept segments, F, and its block up to itself
    a row of F sees           F and the whole block, not the segments
    the new F                 the layer's output on the rows of F

The keys of F are kept beside those of the segments, so that tokens which come one by one need no rows of F: these are
run again only with the token that completes the block, and with the first of the next one, when F has new keys.

Recurrent memory tokens, the baseline, differ in three places: the rows before the tokens are read only, the memory is
made by rows after the block (the tail), and it goes from the last layer to the first.

Shapes: R rows of the batch, n tokens of a round, f vectors of memory, W slots for past tokens, D hidden size, H heads
of keys. A token that is the i-th of its row has the slot `i % W`; with m segments of b tokens kept, W stops growing at
`(m + 1) * b`, and block t then overwrites block `t - m - 1`.
"""

from dataclasses import dataclass

import torch

from .configuration_feedback import FeedbackConfig
from .token_rows import Round


# a token that comes alone lets the slots grow by so many, as growing copies what there is
SLOT_GROWTH = 64


@dataclass(frozen=True)
class BlockPlan:
    """Which rows a layer call has, and where its keys and values go.

    Args:
        num_lead (`int`): rows of memory before the tokens, `f` or 0.
        num_tokens (`int`): tokens.
        num_tail (`int`): rows of memory after the tokens, `f` or 0.
        feedback_length (`int`): f.
        block_size (`int`): b.
        capacity (`int`): W.
        first_slot (`int`, *optional*): the slot of the first token, where all rows are at the same place.
        slots (`torch.LongTensor` of shape `[R, n]`, *optional*): the slots of the tokens, where they are not.
        is_token (`torch.BoolTensor` of shape `[R, n]`, *optional*): which of them are tokens, as some rows have fewer.
        has_tokens (`torch.BoolTensor` of shape `[R, 1, 1]`): rows that have any.
        is_first (`torch.BoolTensor` of shape `[R, 1, 1]`): rows that have no memory yet.
        completes (`torch.BoolTensor` of shape `[R, 1, 1]`): rows whose block is complete with this round.
        any_first, any_completes (`bool`): whether there is such a row.
    """

    num_lead: int
    num_tokens: int
    num_tail: int
    feedback_length: int
    block_size: int
    capacity: int
    first_slot: int | None
    slots: torch.Tensor | None
    is_token: torch.Tensor | None
    has_tokens: torch.Tensor
    is_first: torch.Tensor
    completes: torch.Tensor
    any_first: bool
    any_completes: bool

    @property
    def row_counts(self) -> list[int]:
        """Rows of memory, tokens, and rows of memory again."""
        return [self.num_lead, self.num_tokens, self.num_tail]


def plan_block(
    config: FeedbackConfig,
    round_: Round,
    capacity: int,
    has_feedback: list[bool],
    keys_are_stale: list[bool],
    device: torch.device,
) -> BlockPlan:
    """Decide what a round does.

    Args:
        config (`FeedbackConfig`): the blocks.
        round_ (`Round`): which tokens are run.
        capacity (`int`): slots for past tokens so far; they grow where the round needs more.
        has_feedback (`list[bool]`): rows that have a memory.
        keys_are_stale (`list[bool]`): rows whose memory has changed since its keys were made.
        device (`torch.device`): where the tokens are.
    """
    length = config.feedback_length
    completes = [count > 0 and end % config.block_size == 0 for count, end in zip(round_.counts, round_.ends)]
    is_updated = length > 0 and any(completes)
    is_stale = length > 0 and any(
        stale and has and count for stale, has, count in zip(keys_are_stale, has_feedback, round_.counts)
    )
    is_from_layer = config.feedback_source == "layer"
    is_aligned = round_.is_aligned and len(set(has_feedback)) == 1
    capacity = _slot_capacity(config, capacity, round_)
    slots = is_token = None
    if not is_aligned:
        token = torch.arange(round_.num_tokens)
        slots = ((torch.tensor(round_.seen)[:, None] + token) % capacity).to(device)
        is_token = (token < torch.tensor(round_.counts)[:, None]).to(device)
    return BlockPlan(
        num_lead=length if is_stale or (is_updated and is_from_layer) else 0,
        num_tokens=round_.num_tokens,
        num_tail=length if is_updated and not is_from_layer else 0,
        feedback_length=length,
        block_size=config.block_size,
        capacity=capacity,
        first_slot=round_.seen[0] % capacity if is_aligned else None,
        slots=slots,
        is_token=is_token,
        has_tokens=_per_row([count > 0 for count in round_.counts], device),
        is_first=~_per_row(has_feedback, device),
        completes=_per_row(completes, device),
        any_first=not all(has_feedback),
        any_completes=any(completes),
    )


def _slot_capacity(config: FeedbackConfig, current: int, round_: Round) -> int:
    needed = max(round_.ends)
    if needed <= current:
        return current
    if round_.num_tokens == 1:
        needed = max(needed, current + SLOT_GROWTH)
    if config.num_memory_segments is None:
        return needed
    return min(needed, (config.num_memory_segments + 1) * config.block_size)


def _per_row(flags: list[bool], device: torch.device) -> torch.Tensor:
    return torch.tensor(flags, device=device)[:, None, None]
