# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The feedback model's state in one forward pass: what every layer carries, and how far each row has come."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Cache

from .configuration_feedback import FeedbackConfig
from .feedback_memory import FeedbackCacheLayer, LayerMemory
from .feedback_plan import BlockPlan
from .token_rows import Round, TokenRows


# fields that decide where a cache has which token, and what its memory is
SCHEDULE = ("block_size", "num_memory_segments", "feedback_length", "feedback_source")


@dataclass
class FeedbackState:
    """Changed from round to round by the forward pass that made it.

    Args:
        memories (`list[LayerMemory]`): what every layer carries.
        num_tokens (`list[int]`): real tokens that every row has had before this forward pass.
        num_loaded (`list[int]`): those of them that came with a loaded memory.
        has_feedback (`list[bool]`): rows that have a memory.
        keys_are_stale (`list[bool]`): rows whose memory has changed since its keys were made.
        is_learned (`bool`): whether the memory started from the learned vectors.
        was_read (`bool`): whether any token has read what came of them.
    """

    memories: list[LayerMemory]
    num_tokens: list[int]
    num_loaded: list[int]
    has_feedback: list[bool]
    keys_are_stale: list[bool]
    is_learned: bool = True
    was_read: bool = False
    # the memories of rows that have run out, and whether they had one; the shortest rows are the last
    ended: list[list[torch.Tensor | None]] = field(default_factory=list)
    ended_with: list[bool] = field(default_factory=list)

    def capacity(self, feedback_length: int) -> int:
        """Slots for past tokens, beside the `feedback_length` of the memory."""
        keys = self.memories[0].keys
        return 0 if keys is None else keys.shape[2] - feedback_length

    def shrink(self, num_rows: int) -> None:
        """Go on with the first `num_rows` rows."""
        if num_rows == len(self.has_feedback):
            return
        self.ended.insert(
            0, [None if memory.feedback is None else memory.feedback[num_rows:] for memory in self.memories]
        )
        self.ended_with = [*self.has_feedback[num_rows:], *self.ended_with]
        self.memories = [memory.map(lambda tensor: tensor[:num_rows]) for memory in self.memories]
        self.has_feedback = self.has_feedback[:num_rows]
        self.keys_are_stale = self.keys_are_stale[:num_rows]

    def advance(self, memories: list[LayerMemory], round_: Round, plan: BlockPlan) -> None:
        """Take over what a round has made."""
        self.memories = memories
        self.was_read = self.was_read or (self.is_learned and any(self.has_feedback))
        completes = [count > 0 and end % plan.block_size == 0 for count, end in zip(round_.counts, round_.ends)]
        made_keys = [plan.num_lead > 0 and count > 0 for count in round_.counts]
        self.keys_are_stale = [
            is_complete or (is_stale and not is_made)
            for is_complete, is_stale, is_made in zip(completes, self.keys_are_stale, made_keys)
        ]
        if plan.feedback_length:
            self.has_feedback = [before or now for before, now in zip(self.has_feedback, completes)]

    def final_feedback(self, order: list[int]) -> torch.Tensor | None:
        """The memories that the rows ended with, `[R, layers, f, D]`.

        Args:
            order (`list[int]`): which row of the batch, or document, each row is.
        """
        parts = [[memory.feedback for memory in self.memories], *self.ended]
        stacks = [torch.stack(known, dim=1) for part in parts if (known := [t for t in part if t is not None])]
        if not any(self.has_feedback):
            return None
        feedback = torch.cat(stacks)
        # of rows whose first block was not complete there is nothing, or what nobody has read
        have = [*self.has_feedback, *self.ended_with]
        feedback = nn.functional.pad(feedback, (0, 0, 0, 0, 0, 0, 0, len(have) - len(feedback)))
        is_known = torch.tensor(have, device=feedback.device)[:, None, None, None]
        return feedback.masked_fill(~is_known, 0)[torch.tensor(order, device=feedback.device).argsort()]

    def store(self, cache: Cache, rows: TokenRows, num_columns: int) -> None:
        """Leave everything in the cache after `num_columns` more columns."""
        layers: Any = cache.layers
        for layer, memory in zip(layers, self.memories):
            layer.store(memory, num_columns)
        layers[0].num_tokens = [seen + length for seen, length in zip(self.num_tokens, rows.lengths)]
        layers[0].num_loaded = self.num_loaded
        layers[0].has_feedback = self.has_feedback
        layers[0].keys_are_stale = self.keys_are_stale


def start_state(
    config: FeedbackConfig,
    num_rows: int,
    embedding: torch.Tensor | None,
    initial_feedback: torch.Tensor | None,
    cache: Cache | None,
) -> FeedbackState:
    """The state before the first round: the cache's, or a new one.

    Args:
        config (`FeedbackConfig`): where the memory comes from.
        num_rows (`int`): rows of this forward pass.
        embedding (`torch.Tensor` of shape `[f, D]` or `[layers, f, D]`, *optional*): the learned vectors.
        initial_feedback (`torch.Tensor` of shape `[layers, f, D]`, *optional*): the memory to start from instead.
        cache (`Cache`, *optional*): with what earlier forward passes have left.

    Raises:
        ValueError: the cache is not of this model or has other rows, or a memory is given for rows that have one.
    """
    layers = [] if cache is None else _cache_layers(config, cache)
    if layers and layers[0].num_tokens is not None:
        if len(layers[0].num_tokens) != num_rows:
            raise ValueError(f"`cache` has {len(layers[0].num_tokens)} rows, and there are {num_rows} to go on with")
        if initial_feedback is not None:
            raise ValueError("`initial_feedback` is for the start of a sequence, and `cache` has tokens")
        memories = [layer.memory for layer in layers]
        counts = layers[0].num_tokens, layers[0].num_loaded, layers[0].has_feedback, layers[0].keys_are_stale
        return FeedbackState(memories, *map(list, counts))

    start = initial_feedback
    if start is None and embedding is not None:
        # CODEPATH: learned vectors for every layer, or for the first: recurrent memory tokens are read from the start
        if config.feedback_init == "prefix":
            start = embedding
        elif config.feedback_source == "top":
            start = embedding[None]
    _check_start(config, start)
    memories = [LayerMemory() for _ in range(config.num_hidden_layers)]
    if start is not None:
        for index, vectors in enumerate(start):
            memories[index] = LayerMemory(feedback=vectors.expand(num_rows, -1, -1))
    return FeedbackState(
        memories,
        num_tokens=[0] * num_rows,
        num_loaded=[0] * num_rows,
        has_feedback=[start is not None] * num_rows,
        keys_are_stale=[True] * num_rows,
        is_learned=initial_feedback is None,
    )


def _check_start(config: FeedbackConfig, start: torch.Tensor | None) -> None:
    num_layers = 1 if config.feedback_source == "top" else config.num_hidden_layers
    shape = (num_layers, config.feedback_length, config.hidden_size)
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(f"`initial_feedback` must be of shape {shape}, got {tuple(start.shape)}")


def _cache_layers(config: FeedbackConfig, cache: Cache) -> list[Any]:
    layers: Any = cache.layers
    if cache.offloading:
        raise ValueError("`cache` must not be offloaded: a feedback memory does not grow, and stays")
    if cache.layer_class_to_replicate is not None and not layers:
        layers.extend(FeedbackCacheLayer() for _ in range(config.num_hidden_layers))
    # by name, since code that came with a checkpoint may hold the class twice
    kinds = {getattr(layer, "_layer_type", None) for layer in layers}
    if kinds != {FeedbackCacheLayer._layer_type} or len(layers) != config.num_hidden_layers:
        raise ValueError(
            "`cache` must be a cache of this model, as `DynamicCache(config=model.config)` makes it; got "
            f"{type(cache).__name__} with {len(layers)} layers of type {', '.join(map(str, kinds))}"
        )
    # a cache goes on under the blocks that it was filled with: slots and memories of others would be read wrongly
    schedule = {name: getattr(config, name) for name in SCHEDULE}
    if layers[0].schedule not in (None, schedule):
        raise ValueError(f"`cache` was filled with {layers[0].schedule}, and this model has {schedule}")
    layers[0].schedule = schedule
    return layers
