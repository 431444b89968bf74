# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The open windows of a batch: read on, slept over where they are full, kept in a cache between forward passes.

Everything is a value that a step takes and gives anew, so that gradient crosses windows and a step can be run again
under checkpointing. Sequences that take equally many tokens run together, and so do those that sleep equally long:
padding inside a pass would let the fast weights of linear attention decay.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache

from .configuration_sleep import SleepConfig
from .sleep_passes import SleepPasses
from .sleep_states import LayerState, WindowPosition, merge_columns, select_rows


class OpenWindows(NamedTuple):
    """Where the sequences of a batch are, and what their layers carry.

    Args:
        position (`WindowPosition`): where they are in their windows.
        states (`list[LayerState]`): of every layer call, then of every call of an inserted layer.
        core_output (`torch.Tensor` of shape `[B, F, D]`, *optional*): the first pass over each open window, aligned on
            the right, as the last layer that runs in every pass left it.
    """

    position: WindowPosition
    states: list[LayerState]
    core_output: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Sequences."""
        return len(self.position.filled)

    def first(self, num_sequences: int) -> "OpenWindows":
        """The first `num_sequences` sequences."""
        rows = list(range(num_sequences))
        core_output = None if self.core_output is None else self.core_output[:num_sequences]
        states = [state.first_rows(num_sequences) for state in self.states]
        return OpenWindows(self.position.select(rows), states, core_output)

    def detach(self) -> "OpenWindows":
        """The same without gradient."""
        core_output = None if self.core_output is None else self.core_output.detach()
        return OpenWindows(self.position, [state.detach() for state in self.states], core_output)

    def select(self, rows: list[int]) -> "OpenWindows":
        """The sequences `rows`, without the columns that none of them needs."""
        position = self.position.select(rows)
        index = self._index(rows)
        num_columns = max(position.lengths())
        states = [state.select(index).last_columns(num_columns) for state in self.states]
        core_output = None if self.core_output is None else select_rows(self.core_output, index)
        return OpenWindows(position, states, core_output)

    def merge(self, part: "OpenWindows", rows: list[int]) -> "OpenWindows":
        """The same with the sequences `rows` replaced by `part`, without the columns that none needs any more."""
        index, batch_size = self._index(rows), self.batch_size
        position = self.position.merge(part.position, rows)
        num_columns = max(position.lengths())
        states = [
            state.merge(new, index, batch_size).last_columns(num_columns)
            for state, new in zip(self.states, part.states)
        ]
        core_output: Any = merge_columns(self.core_output, part.core_output, index, batch_size, 1)
        return OpenWindows(position, states, core_output[:, core_output.shape[1] - max(position.filled) :])

    def _index(self, rows: list[int]) -> torch.Tensor | None:
        return None if len(rows) == self.batch_size else torch.tensor(rows)

    def store(self, cache: Cache, num_columns: int) -> None:
        """Leave everything in a cache after `num_columns` more columns of input, padding included."""
        layers: Any = cache.layers
        window = layers[0]
        window.filled, window.kept, window.seen = self.position
        window.hidden_states = self.core_output
        window.num_columns += num_columns
        for layer, state in zip(layers[1:], self.states):
            layer.state = state


def open_windows(passes: SleepPasses, batch_size: int, cache: Cache | None) -> OpenWindows:
    """The windows before the first token of a forward pass: the cache's, or new ones.

    Args:
        passes (`SleepPasses`): the layers.
        batch_size (`int`): sequences.
        cache (`Cache`, *optional*): with what earlier forward passes have left.

    Raises:
        ValueError: if the cache was not made for this model, or has other sequences.
    """
    layers: list[Any] = [] if cache is None else check_sleep_cache(cache, passes.config)
    if not layers or not layers[0].filled:
        return OpenWindows(WindowPosition.start(batch_size), passes.empty_states())
    window = layers[0]
    if len(window.filled) != batch_size:
        raise ValueError(f"`cache` has {len(window.filled)} rows but the input has {batch_size}")
    position = WindowPosition(*map(list, (window.filled, window.kept, window.seen)))
    return OpenWindows(position, [layer.state for layer in layers[1:]], window.hidden_states)


def check_sleep_cache(cache: Cache, config: SleepConfig) -> list[Any]:
    """The layers of a cache that was made for a model of this configuration.

    Raises:
        ValueError: if it has other layers, or moves them off the device.
    """
    # by name: code that came with a checkpoint has classes of its own
    kinds = [getattr(layer, "_layer_type", None) for layer in cache.layers]
    if kinds != config.layer_types:
        raise ValueError(
            f"`cache` must be made for this model, as by DynamicCache(config=model.config), with "
            f"{config.num_hidden_layers} layers; got {len(kinds)} layers of {type(cache).__name__}"
        )
    if cache.offloading:
        raise ValueError("`cache` must not have `offloading`: all layers' states are needed in every pass")
    return list(cache.layers)


def read_tokens(
    passes: SleepPasses, windows: OpenWindows, tokens: torch.Tensor, counts: list[int], num_passes: list[int]
) -> tuple[list[torch.Tensor], OpenWindows]:
    """Read some tokens of every open window, then sleep over those that are full.

    Args:
        passes (`SleepPasses`): the layers.
        windows (`OpenWindows`): the windows before the tokens.
        tokens (`torch.Tensor` of shape `[B, n, D]`): the first layer's input.
        counts (`list[int]`): how many of the tokens each sequence has.
        num_passes (`list[int]`): passes over the window of each sequence if it is full, the first being the one that
            reads it; 0 leaves it open, for where nothing follows.

    Returns:
        `tuple`: the outputs of `SleepPasses.wake` `[B, n, D]`, and the windows after the tokens.
    """
    gathered: list[torch.Tensor] = []
    for count in sorted(set(counts) - {0}):
        rows = [row for row, taken in enumerate(counts) if taken == count]
        part = windows.select(rows)
        index = None if len(rows) == len(counts) else torch.tensor(rows, device=tokens.device)
        outputs, core_output, states = passes.wake(select_rows(tokens, index)[:, :count], part.states, part.position)
        if part.core_output is not None:
            core_output = torch.cat([part.core_output, core_output], dim=1)
        windows = windows.merge(OpenWindows(part.position.read(count), states, core_output), rows)
        if index is None:
            gathered = outputs
            continue
        gathered = gathered or [torch.zeros_like(tokens, dtype=output.dtype) for output in outputs]
        padding = (0, 0, 0, tokens.shape[1] - count)
        gathered = [
            whole.index_copy(0, index, nn.functional.pad(output, padding)) for whole, output in zip(gathered, outputs)
        ]
    is_full = [filled == passes.config.sleep_window for filled in windows.position.filled]
    for number in sorted(set(num_passes) - {0}):
        rows = [row for row, full in enumerate(is_full) if full and num_passes[row] == number]
        windows = sleep_over(passes, windows, rows, number)
    return gathered, windows


def sleep_over(passes: SleepPasses, windows: OpenWindows, rows: list[int], num_passes: int) -> OpenWindows:
    """The windows after some sequences have slept over theirs.

    Args:
        passes (`SleepPasses`): the layers.
        windows (`OpenWindows`): the windows of all sequences.
        rows (`list[int]`): the sequences that sleep, none with an empty window.
        num_passes (`int`): passes in all.
    """
    for filled in sorted({windows.position.filled[row] for row in rows}):
        group = [row for row in rows if windows.position.filled[row] == filled]
        part = windows.select(group)
        core_output: Any = part.core_output
        core_output = core_output[:, -filled:]
        states = passes.sleep(core_output, part.states, part.position, num_passes)
        position = part.position.close(passes.config.eviction, passes.config.sleep_window)
        windows = windows.merge(OpenWindows(position, states, core_output[:, :0]), group)
    return windows


__all__ = ["OpenWindows", "check_sleep_cache", "open_windows", "read_tokens", "sleep_over"]
