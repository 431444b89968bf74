# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The open windows of a batch: reading tokens into them, sleeping over full ones, and keeping them in a cache.

A step takes windows and returns new ones, so that gradient crosses windows and checkpointing can run a step again.
Only sequences with equally many tokens run together, in reading and in sleep: padding inside a pass would let the fast
weights of linear attention decay.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache

from .cost import Span
from .sleep_passes import SleepPasses
from .sleep_states import LayerState, WindowPosition, merge_columns, select_sequences
from .token_sequences import plan_chunks


class OpenWindows(NamedTuple):
    """The open windows of a batch.

    Args:
        position (`WindowPosition`): positions of the sequences in their windows.
        states (`list[LayerState]`): states of every layer call, then of every call of an inserted layer.
        core_output (`torch.Tensor` of shape `[B, F, D]`, *optional*): the tokens of each open window after the first
            pass, at the last layer that runs in every pass; aligned on the right.
    """

    position: WindowPosition
    states: list[LayerState]
    core_output: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of sequences."""
        return len(self.position.filled)

    def first(self, num_sequences: int) -> "OpenWindows":
        """Keep the first `num_sequences` sequences."""
        indices = list(range(num_sequences))
        core_output = None if self.core_output is None else self.core_output[:num_sequences]
        states = [state.first(num_sequences) for state in self.states]
        return OpenWindows(self.position.select(indices), states, core_output)

    def detach(self, indices: list[int]) -> "OpenWindows":
        """Return the windows with those of the sequences `indices` without gradient."""
        if len(indices) < self.batch_size:
            return self.merge(self.select(indices).detach(list(range(len(indices)))), indices) if indices else self
        core_output = None if self.core_output is None else self.core_output.detach()
        return OpenWindows(self.position, [state.detach() for state in self.states], core_output)

    def select(self, indices: list[int]) -> "OpenWindows":
        """Select the sequences `indices`, without columns that none of them needs."""
        position = self.position.select(indices)
        index = self._index(indices)
        num_columns = max(position.lengths())
        states = [state.select(index).last_columns(num_columns) for state in self.states]
        core_output = None if self.core_output is None else select_sequences(self.core_output, index)
        return OpenWindows(position, states, core_output)

    def merge(self, part: "OpenWindows", indices: list[int]) -> "OpenWindows":
        """Replace the sequences `indices` by `part`, and drop columns that no sequence needs any more."""
        index, batch_size = self._index(indices), self.batch_size
        position = self.position.merge(part.position, indices)
        num_columns = max(position.lengths())
        states = [
            state.merge(new, index, batch_size).last_columns(num_columns)
            for state, new in zip(self.states, part.states)
        ]
        core_output: Any = merge_columns(self.core_output, part.core_output, index, batch_size, 1)
        return OpenWindows(position, states, core_output[:, core_output.shape[1] - max(position.filled) :])

    def _index(self, indices: list[int]) -> torch.Tensor | None:
        return None if len(indices) == self.batch_size else torch.tensor(indices)

    def store(self, cache: Cache, num_columns: int) -> None:
        """Write the windows to a cache after `num_columns` more columns of input, padding included."""
        layers: Any = cache.layers
        window = layers[0]
        window.filled, window.kept, window.seen = self.position
        window.hidden_states = self.core_output
        window.num_columns += num_columns
        for layer, state in zip(layers[1:], self.states):
            layer.state = state


def open_windows(passes: SleepPasses, batch_size: int, cache: Cache | None) -> OpenWindows:
    """Return the windows at the start of a forward pass: those of the cache, or new ones.

    Args:
        passes (`SleepPasses`): the layers.
        batch_size (`int`): number of sequences.
        cache (`Cache`, *optional*): the cache of earlier forward passes.

    Raises:
        ValueError: if the cache was not made for this model, or has another number of sequences.
    """
    layers: list[Any] = [] if cache is None else check_sleep_cache(cache, passes)
    if not layers or not layers[0].filled:
        return OpenWindows(WindowPosition.start(batch_size), passes.empty_states())
    window = layers[0]
    if len(window.filled) != batch_size:
        raise ValueError(f"`cache` has {len(window.filled)} rows but the input has {batch_size}")
    position = WindowPosition(*map(list, (window.filled, window.kept, window.seen)))
    return OpenWindows(position, [layer.state for layer in layers[1:]], window.hidden_states)


def window_spans(config: Any, steps: Iterable[int]) -> Iterator[tuple[Span, Span | None]]:
    """Yield the spans of one sequence: those that the first pass reads, and of a window that it fills those of sleep.

    Args:
        config (`SleepConfig`): configuration of the model.
        steps (`Iterable[int]`): numbers of tokens that one forward pass after the other reads, with a cache.
    """
    window, filled, kept = config.sleep_window, 0, 0
    for num_tokens in steps:
        for chunk in plan_chunks([num_tokens], [filled], window, keep_all=True):
            filled += chunk.num_tokens
            is_full = filled == window
            yield Span(chunk.num_tokens, kept + filled), Span(window, kept + window) if is_full else None
            if is_full:
                filled, kept = 0, 0 if config.eviction == "hard" else window - 1


def check_sleep_cache(cache: Cache, passes: SleepPasses) -> list[Any]:
    """Return the layers of a cache, which must have been made for these passes.

    Raises:
        ValueError: if the cache has other layers, or offloads them.
    """
    # compared by name: code that came with a checkpoint has classes of its own
    kinds = [getattr(layer, "_layer_type", None) for layer in cache.layers]
    num_states = len(passes.layer_of_state)
    if kinds != ["sleep_window"] + ["sleep_state"] * num_states:
        raise ValueError(
            "`cache` must be a cache of this model, as `DynamicCache(config=model.config)` makes it, with "
            f"{1 + num_states} layers; got {len(kinds)} layers of {type(cache).__name__}"
        )
    if cache.offloading:
        raise ValueError("`cache` must not have `offloading`: all layers' states are needed in every pass")
    return list(cache.layers)


def read_tokens(
    passes: SleepPasses, windows: OpenWindows, tokens: torch.Tensor, counts: list[int], num_passes: list[int]
) -> tuple[list[torch.Tensor], OpenWindows]:
    """Read tokens into the open windows, then sleep over those that are full.

    Args:
        passes (`SleepPasses`): the layers.
        windows (`OpenWindows`): the windows before the tokens.
        tokens (`torch.Tensor` of shape `[B, n, D]`): the first layer's input.
        counts (`list[int]`): number of tokens of each sequence.
        num_passes (`list[int]`): passes over each sequence's window if it is full, the one that reads it included; 0
            leaves the window open, as nothing follows it.

    Returns:
        `tuple[list[torch.Tensor], OpenWindows]`: the outputs of `SleepPasses.wake` `[B, n, D]`, and the windows after
        the tokens.
    """
    gathered: list[torch.Tensor] = []
    for count in sorted(set(counts) - {0}):
        indices = [index for index, num_tokens in enumerate(counts) if num_tokens == count]
        part = windows.select(indices)
        index = None if len(indices) == len(counts) else torch.tensor(indices, device=tokens.device)
        chosen = select_sequences(tokens, index)[:, :count]
        outputs, core_output, states = passes.wake(chosen, part.states, part.position)
        if part.core_output is not None:
            core_output = torch.cat([part.core_output, core_output], dim=1)
        windows = windows.merge(OpenWindows(part.position.read(count), states, core_output), indices)
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
        indices = [index for index, full in enumerate(is_full) if full and num_passes[index] == number]
        windows = sleep_over(passes, windows, indices, number)
    return gathered, windows


def sleep_over(passes: SleepPasses, windows: OpenWindows, indices: list[int], num_passes: int) -> OpenWindows:
    """Let the sequences `indices` sleep over their windows, and return the windows of all sequences.

    Args:
        passes (`SleepPasses`): the layers.
        windows (`OpenWindows`): the windows of all sequences.
        indices (`list[int]`): the sequences that sleep; their windows must not be empty.
        num_passes (`int`): number of passes, the one that read the window included.
    """
    for filled in sorted({windows.position.filled[index] for index in indices}):
        group = [index for index in indices if windows.position.filled[index] == filled]
        part = windows.select(group)
        core_output: Any = part.core_output
        core_output = core_output[:, -filled:]
        states = passes.sleep(core_output, part.states, part.position, num_passes)
        position = part.position.close(passes.config.eviction, passes.config.sleep_window)
        windows = windows.merge(OpenWindows(position, states, core_output[:, :0]), group)
    return windows


__all__ = ["OpenWindows", "check_sleep_cache", "open_windows", "read_tokens", "sleep_over", "window_spans"]
