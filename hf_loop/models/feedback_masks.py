# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the rows of a layer call see of the keys `[feedback memory | slots of past tokens | tail]`."""

from typing import Any

import torch

from .backbone import Backbone
from .configuration_feedback import FeedbackConfig
from .feedback_plan import BlockPlan
from .token_rows import Round
from .transformers_seams import ALL_MASK_ATTENTION_FUNCTIONS, attention_function


def block_masks(config: FeedbackConfig, backbone: Backbone, round_: Round, plan: BlockPlan, dtype: torch.dtype) -> Any:
    """The attention masks of one round, by layer type where the backbone has several.

    Args:
        config (`FeedbackConfig`): the blocks.
        backbone (`Backbone`): its attention function decides the form of the masks.
        round_ (`Round`): which tokens are run.
        plan (`BlockPlan`): the round.
        dtype (`torch.dtype`): of masks that are added.
    """
    attention, needs_mask = attention_function(backbone.config), backbone.spec.needs_masks
    window = getattr(backbone.config, "sliding_window", None)
    if backbone.layer_types is None:
        return _attention_mask(config, attention, round_, plan, window, dtype, needs_mask)
    windows = {"full_attention": None, "sliding_attention": window}
    return {
        layer_type: _attention_mask(config, attention, round_, plan, windows[layer_type], dtype, needs_mask)
        for layer_type in dict.fromkeys(backbone.layer_types)
    }


def _attention_mask(
    config: FeedbackConfig,
    attention: str,
    round_: Round,
    plan: BlockPlan,
    window: int | None,
    dtype: torch.dtype,
    needs_mask: bool,
) -> Any:
    # the start of a sequence without a memory is plain causal attention, which has a faster form
    is_start = plan.first_slot == 0 and round_.ends[0] == plan.capacity == plan.num_tokens
    is_causal = (
        not needs_mask and is_start and plan.feedback_length == 0 and (window is None or plan.num_tokens <= window)
    )
    if attention == "sdpa" and is_causal:
        return None
    sees = visible_slots(config, round_, plan, window)
    if needs_mask:
        sees = sees.expand(len(round_.seen), -1, -1, -1)
    if attention == "sdpa":
        return sees
    # every other attention function gets its mask in the form that transformers makes for it
    return ALL_MASK_ATTENTION_FUNCTIONS[attention](
        batch_size=sees.shape[0],
        q_length=sees.shape[2],
        kv_length=sees.shape[3],
        mask_function=lambda batch, head, query, key: sees[batch, 0, query, key],
        dtype=dtype,
        device=sees.device,
        allow_is_causal_skip=False,
    )


def visible_slots(config: FeedbackConfig, round_: Round, plan: BlockPlan, window: int | None) -> torch.Tensor:
    """What each row of a layer call sees.

    Args:
        config (`FeedbackConfig`): the blocks.
        round_ (`Round`): which tokens are run.
        plan (`BlockPlan`): the round.
        window (`int`, *optional*): how far back a token of a sliding-window layer sees. A memory is in sight of every
            token, however far back its block is.

    Returns:
        `torch.BoolTensor` of shape `[R or 1, 1, lead + n + tail, f + W + tail]`.
    """
    device = plan.is_first.device
    num_rows = 1 if plan.first_slot is not None else len(round_.seen)
    seen = torch.tensor(round_.seen[:num_rows], device=device)[:, None, None]
    total = torch.tensor(round_.ends[:num_rows], device=device)[:, None, None]
    block_start = seen - seen % config.block_size
    token = seen + torch.arange(plan.num_tokens, device=device)[None, :, None]
    # the newest token that has each slot; below zero where there is none yet
    newest = total - 1 - (total - 1 - torch.arange(plan.capacity, device=device)) % plan.capacity

    is_past = (newest >= 0) & (newest <= token)
    if config.num_memory_segments is not None:
        is_past &= newest >= block_start - config.num_memory_segments * config.block_size
    if window is not None:
        is_past &= token - newest < window
    if plan.is_token is not None:
        # rows without a token must see something, or what they compute is not a number
        is_past |= ~plan.is_token[..., None]
    is_in_block = (newest >= block_start) & (newest >= 0)
    # rows of feedback compress the block too, recurrent memory tokens before it are only read
    lead_sees = is_in_block & (config.feedback_source == "layer")
    parts = [
        (plan.num_lead, True, lead_sees, False),
        (plan.num_tokens, ~plan.is_first[:num_rows], is_past, False),
        (plan.num_tail, True, is_in_block, True),
    ]
    widths = [plan.feedback_length, plan.capacity, plan.num_tail]
    queries = [
        torch.cat(
            [
                torch.as_tensor(sees, device=device).expand(num_rows, num_queries, width)
                for sees, width in zip(columns, widths)
            ],
            dim=-1,
        )
        for num_queries, *columns in parts
    ]
    return torch.cat(queries, dim=1)[:, None]
