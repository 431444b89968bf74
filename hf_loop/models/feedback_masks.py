# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Attention masks of the feedback schedule, over the keys `[feedback memory | ring buffer of past tokens | tail]`."""

from typing import Any

import torch

from .backbone import Backbone
from .configuration_feedback import FeedbackConfig
from .feedback_plan import BlockPlan
from .token_sequences import Chunk
from .transformers_seams import ALL_MASK_ATTENTION_FUNCTIONS, attention_function


def block_masks(config: FeedbackConfig, backbone: Backbone, chunk: Chunk, plan: BlockPlan, dtype: torch.dtype) -> Any:
    """Make the attention masks of a chunk, by layer type if the backbone has several.

    Args:
        config (`FeedbackConfig`): configuration of the model.
        backbone (`Backbone`): its attention function decides the form of the masks.
        chunk (`Chunk`): the tokens to run.
        plan (`BlockPlan`): the plan of the chunk.
        dtype (`torch.dtype`): dtype of additive masks.
    """
    attention, needs_mask = attention_function(backbone.config), backbone.spec.needs_masks
    window = getattr(backbone.config, "sliding_window", None)
    if backbone.layer_types is None:
        return _attention_mask(config, attention, chunk, plan, window, dtype, needs_mask)
    windows = {"full_attention": None, "sliding_attention": window}
    return {
        layer_type: _attention_mask(config, attention, chunk, plan, windows[layer_type], dtype, needs_mask)
        for layer_type in dict.fromkeys(backbone.layer_types)
    }


def _attention_mask(
    config: FeedbackConfig,
    attention: str,
    chunk: Chunk,
    plan: BlockPlan,
    window: int | None,
    dtype: torch.dtype,
    needs_mask: bool,
) -> Any:
    # without a memory, the start of a sequence is plain causal attention, which needs no mask
    is_start = plan.first_index == 0 and chunk.ends[0] == plan.capacity == plan.num_tokens
    is_causal = (
        not needs_mask and is_start and plan.feedback_length == 0 and (window is None or plan.num_tokens <= window)
    )
    if attention == "sdpa" and is_causal:
        return None
    sees = visible_keys(config, chunk, plan, window)
    if needs_mask:
        sees = sees.expand(len(chunk.seen), -1, -1, -1)
    if attention == "sdpa":
        return sees
    # transformers converts the mask to the form that the attention function takes
    return ALL_MASK_ATTENTION_FUNCTIONS[attention](
        batch_size=sees.shape[0],
        q_length=sees.shape[2],
        kv_length=sees.shape[3],
        mask_function=lambda batch, head, query, key: sees[batch, 0, query, key],
        dtype=dtype,
        device=sees.device,
        allow_is_causal_skip=False,
    )


def visible_keys(config: FeedbackConfig, chunk: Chunk, plan: BlockPlan, window: int | None) -> torch.Tensor:
    """Compute which keys each query of a layer call sees.

    Args:
        config (`FeedbackConfig`): configuration of the model.
        chunk (`Chunk`): the tokens to run.
        plan (`BlockPlan`): the plan of the chunk.
        window (`int`, *optional*): sliding window of the layer. It does not apply to the memory, which every token
            sees.

    Returns:
        `torch.BoolTensor` of shape `[R or 1, 1, lead + n + tail, f + W + tail]`: `True` for a key that is seen.
    """
    device = plan.is_first.device
    num_sequences = 1 if plan.first_index is not None else len(chunk.seen)
    seen = torch.tensor(chunk.seen[:num_sequences], device=device)[:, None, None]
    total = torch.tensor(chunk.ends[:num_sequences], device=device)[:, None, None]
    block_start = seen - seen % config.block_size
    token = seen + torch.arange(plan.num_tokens, device=device)[None, :, None]
    # index of the last token written to each ring-buffer entry; negative while it is empty
    newest = total - 1 - (total - 1 - torch.arange(plan.capacity, device=device)) % plan.capacity

    is_past = (newest >= 0) & (newest <= token)
    if config.num_memory_segments is not None:
        is_past &= newest >= block_start - config.num_memory_segments * config.block_size
    if window is not None:
        is_past &= token - newest < window
    if plan.is_token is not None:
        # queries without a token must see something: attention to nothing gives NaN
        is_past |= ~plan.is_token[..., None]
    is_in_block = (newest >= block_start) & (newest >= 0)
    # the lead of a feedback memory compresses the block; that of recurrent memory tokens is only read
    lead_sees = is_in_block & (config.feedback_source == "layer")
    parts = [
        (plan.num_lead, True, lead_sees, False),
        (plan.num_tokens, ~plan.is_first[:num_sequences], is_past, False),
        (plan.num_tail, True, is_in_block, True),
    ]
    widths = [plan.feedback_length, plan.capacity, plan.num_tail]
    queries = [
        torch.cat(
            [
                torch.as_tensor(sees, device=device).expand(num_sequences, num_queries, width)
                for sees, width in zip(columns, widths)
            ],
            dim=-1,
        )
        for num_queries, *columns in parts
    ]
    return torch.cat(queries, dim=1)[:, None]
