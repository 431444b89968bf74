# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The block of caches of continuous depth batching: keys and values of a fixed number of sequences.

A layer has one tensor of keys and one of values, `[sets, positions, heads, channels]`. A sequence has one set in every
layer outside of the loop, and one for each loop in every layer of the core. A call for rows at different loops takes
their sets with a single `index_select`, in pieces that lie together in memory, which is as fast as the concatenation
in a dynamic cache, and four times as fast as indexing `[loop, row, head, position]`.
"""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .cache_slots import CacheSlot
from .schedules import Call


class BlockRows(NamedTuple):
    """The rows of a call, each at its own position and loop.

    Args:
        rows (`torch.LongTensor` of shape `[B]`): rows of the block.
        positions (`torch.LongTensor` of shape `[B]`): position of the token.
        loops (`torch.LongTensor` of shape `[B]`): loops that the token has been through.
        length (`int`): the largest position and one.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    loops: torch.Tensor
    length: int


class LayerBlock:
    """Keys and values of one layer.

    Args:
        layer (`DynamicLayer`): the layer's entry in a cache, which tells sizes and kinds.
        num_sets (`int`): sets of keys and values.
        max_length (`int`): positions of a set.
    """

    def __init__(self, layer: Any, num_sets: int, max_length: int):
        self.tensors = tuple(
            states.new_zeros(num_sets, max_length, states.shape[1], states.shape[3])
            for states in (layer.keys, layer.values)
        )

    def write_prompt(self, index: int, layer: Any, number: int, num_tokens: int) -> None:
        """Copy the last tokens of a sequence in a cache's entry, `[B, H, T, C]`, to a set."""
        for block, states in zip(self.tensors, (layer.keys, layer.values)):
            block[index, :num_tokens] = states[number, :, -num_tokens:].transpose(0, 1)

    def copy(self, positions: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy the keys and values of positions from sets to others; all `[N]`."""
        for block in self.tensors:
            block[target, positions] = block[source, positions]


class BlockSlot(CacheSlot):
    """What one layer call sees of the block: its rows, each at its own loop.

    Args:
        block (`LayerBlock`): the layer's keys and values.
        index (`torch.LongTensor` of shape `[B]`): the set of every row.
        batch (`BlockRows`): the rows.
    """

    def __init__(self, block: LayerBlock, index: torch.Tensor, batch: BlockRows):
        self.block, self.index, self.batch = block, index, batch
        self.was_used = False

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.was_used = True
        index, (_, positions, _, length) = self.index, self.batch
        seen = []
        for block, states in zip(self.block.tensors, (key_states, value_states)):
            block[index, positions] = states[:, :, 0]
            seen.append(block[:, :length].index_select(0, index).transpose(1, 2))
        return tuple(seen)

    def __getattr__(self, name):
        raise AttributeError(f"a layer asked the block of caches for `{name}`, which it does not have")


class DepthBlock:
    """Keys and values of all layers.

    Args:
        schedule (`LoopedDepth`): the schedule.
        num_rows (`int`): sequences.
        num_loops (`int`): loops after which every token exits.
        max_length (`int`): most tokens of a sequence.
    """

    def __init__(self, schedule: Any, num_rows: int, num_loops: int, max_length: int):
        self.num_rows, self.num_loops, self.max_length = num_rows, num_loops, max_length
        self.calls: list[Call] = schedule.calls(num_loops)
        # made when the first prompt has been read, whose cache tells their sizes
        self.layers: dict[int, LayerBlock] = {}

    def write_prompt(self, row: int, cache: Any, number: int, num_tokens: int) -> None:
        """Copy a prompt to a row.

        Args:
            row (`int`): the row.
            cache (`Cache`): the cache of a pass over several prompts.
            number (`int`): the number of this prompt in the pass.
            num_tokens (`int`): its length, without the padding before it.

        Raises:
            ValueError: if the cache has layers other than full attention.
        """
        for call in self.calls:
            layer = cache.layers[call.slot]
            if not isinstance(layer, DynamicLayer) or isinstance(layer, DynamicSlidingWindowLayer):
                raise ValueError(
                    "`generate_depth_batch` works with layers of full attention only, but the cache of layer "
                    f"{call.layer} is a {type(layer).__name__}"
                )
            num_sets = 1 if call.loop is None else self.num_loops
            if call.layer not in self.layers:
                self.layers[call.layer] = LayerBlock(layer, self.num_rows * num_sets, self.max_length)
            self.layers[call.layer].write_prompt(row * num_sets + (call.loop or 0), layer, number, num_tokens)

    def view(self, call: Call, batch: BlockRows) -> BlockSlot:
        """Return what a layer call sees of the block. A call of the core stands for the loop that each row is in."""
        index = batch.rows if call.loop is None else batch.rows * self.num_loops + batch.loops
        return BlockSlot(self.layers[call.layer], index, batch)

    def fill_later_loops(self, batch: BlockRows) -> None:
        """Give the later loops of tokens that have exited the keys and values of their last loop."""
        loops = torch.arange(self.num_loops, device=batch.loops.device)
        which, later = (loops >= batch.loops[:, None]).nonzero(as_tuple=True)
        first = batch.rows[which] * self.num_loops
        positions, source, target = batch.positions[which], first + batch.loops[which] - 1, first + later
        for layer in {call.layer for call in self.calls if call.loop is not None}:
            self.layers[layer].copy(positions, source, target)


__all__ = ["BlockRows", "BlockSlot", "DepthBlock", "LayerBlock"]
