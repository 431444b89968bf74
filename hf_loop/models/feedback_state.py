# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The feedback model's state within one forward pass: the layers' memories, and the position of each sequence."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Cache

from .configuration_feedback import FeedbackConfig
from .feedback_memory import FeedbackCacheLayer, LayerMemory
from .feedback_plan import BlockPlan
from .token_sequences import Chunk, TokenSequences


# fields that the layout of a cache and the meaning of its memory depend on
SCHEDULE = ("block_size", "num_memory_segments", "feedback_length", "feedback_source")


@dataclass
class FeedbackState:
    """The state of one forward pass, which it updates after every chunk.

    Args:
        memories (`list[LayerMemory]`): the memory of every layer call.
        num_tokens (`list[int]`): real tokens of each sequence before this forward pass.
        num_loaded (`list[int]`): tokens of each sequence that came with a loaded memory.
        has_feedback (`list[bool]`): whether each sequence has a memory.
        keys_are_stale (`list[bool]`): whether each sequence's memory has changed since its keys were computed.
        is_learned (`bool`): whether the memory started from the learned vectors.
        was_read (`bool`): whether any token has read a memory that started from them.
        ended (`list[list[torch.Tensor | None]]`): memories of the sequences that have ended, longest first.
        ended_with (`list[bool]`): whether each of these had one.
    """

    memories: list[LayerMemory]
    num_tokens: list[int]
    num_loaded: list[int]
    has_feedback: list[bool]
    keys_are_stale: list[bool]
    is_learned: bool = True
    was_read: bool = False
    ended: list[list[torch.Tensor | None]] = field(default_factory=list)
    ended_with: list[bool] = field(default_factory=list)

    def capacity(self, feedback_length: int) -> int:
        """Return the size of the ring buffer, which follows the `feedback_length` keys of the memory."""
        keys = self.memories[0].keys
        return 0 if keys is None else keys.shape[2] - feedback_length

    def shrink(self, num_sequences: int) -> None:
        """Keep the first `num_sequences` sequences, as the others have ended."""
        if num_sequences == len(self.has_feedback):
            return
        self.ended.insert(
            0, [None if memory.feedback is None else memory.feedback[num_sequences:] for memory in self.memories]
        )
        self.ended_with = [*self.has_feedback[num_sequences:], *self.ended_with]
        self.memories = [memory.map(lambda tensor: tensor[:num_sequences]) for memory in self.memories]
        self.has_feedback = self.has_feedback[:num_sequences]
        self.keys_are_stale = self.keys_are_stale[:num_sequences]

    def advance(self, memories: list[LayerMemory], chunk: Chunk, plan: BlockPlan) -> None:
        """Update the state after a chunk with the `memories` it returned."""
        self.memories = memories
        self.was_read = self.was_read or (self.is_learned and any(self.has_feedback))
        completes = [count > 0 and end % plan.block_size == 0 for count, end in zip(chunk.counts, chunk.ends)]
        made_keys = [plan.num_lead > 0 and count > 0 for count in chunk.counts]
        self.keys_are_stale = [
            is_complete or (is_stale and not is_made)
            for is_complete, is_stale, is_made in zip(completes, self.keys_are_stale, made_keys)
        ]
        if plan.feedback_length:
            self.has_feedback = [before or now for before, now in zip(self.has_feedback, completes)]

    def final_feedback(self, order: list[int]) -> torch.Tensor | None:
        """Return the final memories `[R, layers, f, D]`, zero for a sequence without one.

        Args:
            order (`list[int]`): index of each sequence in the batch, or among its documents.
        """
        parts = [[memory.feedback for memory in self.memories], *self.ended]
        stacks = [torch.stack(known, dim=1) for part in parts if (known := [t for t in part if t is not None])]
        if not any(self.has_feedback):
            return None
        feedback = torch.cat(stacks)
        # sequences without a complete block have no memory: return zeros for them
        have = [*self.has_feedback, *self.ended_with]
        feedback = nn.functional.pad(feedback, (0, 0, 0, 0, 0, 0, 0, len(have) - len(feedback)))
        is_known = torch.tensor(have, device=feedback.device)[:, None, None, None]
        return feedback.masked_fill(~is_known, 0)[torch.tensor(order, device=feedback.device).argsort()]

    def store(self, cache: Cache, sequences: TokenSequences, num_columns: int) -> None:
        """Write the state to the cache after `num_columns` more columns of input."""
        layers: Any = cache.layers
        for layer, memory in zip(layers, self.memories):
            layer.store(memory, num_columns)
        layers[0].num_tokens = [seen + length for seen, length in zip(self.num_tokens, sequences.lengths)]
        layers[0].num_loaded = self.num_loaded
        layers[0].has_feedback = self.has_feedback
        layers[0].keys_are_stale = self.keys_are_stale


def start_state(
    config: FeedbackConfig,
    num_sequences: int,
    embedding: torch.Tensor | None,
    initial_feedback: torch.Tensor | None,
    cache: Cache | None,
) -> FeedbackState:
    """Return the state before the first chunk: that of the cache, or a new one.

    Args:
        config (`FeedbackConfig`): configuration of the model.
        num_sequences (`int`): sequences of this forward pass.
        embedding (`torch.Tensor` of shape `[f, D]` or `[layers, f, D]`, *optional*): the learned vectors.
        initial_feedback (`torch.Tensor` of shape `[layers, f, D]`, *optional*): the memory to start from instead.
        cache (`Cache`, *optional*): the cache of earlier forward passes.

    Raises:
        ValueError: if the cache was not made for this model, has another number of sequences, or holds tokens and
            `initial_feedback` is given.
    """
    layers = [] if cache is None else _cache_layers(config, cache)
    if layers and layers[0].num_tokens is not None:
        if len(layers[0].num_tokens) != num_sequences:
            raise ValueError(f"`cache` has {len(layers[0].num_tokens)} rows but the input has {num_sequences}")
        if initial_feedback is not None:
            raise ValueError("`initial_feedback` must be None when `cache` holds tokens: it can only start a sequence")
        memories = [layer.memory for layer in layers]
        counts = layers[0].num_tokens, layers[0].num_loaded, layers[0].has_feedback, layers[0].keys_are_stale
        return FeedbackState(memories, *map(list, counts))

    start = initial_feedback
    if start is None and embedding is not None:
        # CODEPATH: there are learned vectors for every layer, or for the first, which reads recurrent memory tokens
        if config.feedback_init == "prefix":
            start = embedding
        elif config.feedback_source == "top":
            start = embedding[None]
    _check_start(config, start)
    memories = [LayerMemory() for _ in range(config.num_hidden_layers)]
    if start is not None:
        for index, vectors in enumerate(start):
            memories[index] = LayerMemory(feedback=vectors.expand(num_sequences, -1, -1))
    return FeedbackState(
        memories,
        num_tokens=[0] * num_sequences,
        num_loaded=[0] * num_sequences,
        has_feedback=[start is not None] * num_sequences,
        keys_are_stale=[True] * num_sequences,
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
        raise ValueError("`cache` must not have `offloading`: a feedback memory does not grow and stays on the device")
    if cache.layer_class_to_replicate is not None and not layers:
        layers.extend(FeedbackCacheLayer() for _ in range(config.num_hidden_layers))
    # compared by name: code that came with a checkpoint has a class of its own
    kinds = {getattr(layer, "_layer_type", None) for layer in layers}
    if kinds != {FeedbackCacheLayer._layer_type} or len(layers) != config.num_hidden_layers:
        raise ValueError(
            "`cache` must be a cache of this model, as `DynamicCache(config=model.config)` makes it; got "
            f"{type(cache).__name__} with {len(layers)} layers of type {', '.join(map(str, kinds))}"
        )
    # a cache filled with another block layout cannot be continued: its entries would be misread
    schedule = {name: getattr(config, name) for name in SCHEDULE}
    if layers[0].schedule not in (None, schedule):
        raise ValueError(f"`cache` must be filled with the model's own {schedule}, got {layers[0].schedule}")
    layers[0].schedule = schedule
    return layers
