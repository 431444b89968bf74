# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a sleep model carries: the states of its layers as values, what layers see of them, and the cache they rest in.

A state is a tuple of tensors that is never written to: a pass takes states and gives new ones, so that gradient
crosses passes and windows. Rows of a batch may be at different places of their windows. Tensors with a token
dimension are therefore aligned on the right: row b's last `length[b]` columns are its own, whatever is before them
belongs to longer rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .transformers_seams import CacheLayerMixin


class WindowPosition(NamedTuple):
    """Where the sequences of a batch are in their windows.

    Args:
        filled (`list[int]`): tokens in each sequence's open window.
        kept (`list[int]`): tokens before the window whose keys and values each sequence still has.
        seen (`list[int]`): tokens each sequence has had in all.
    """

    filled: list[int]
    kept: list[int]
    seen: list[int]

    @classmethod
    def start(cls, batch_size: int) -> "WindowPosition":
        """Before the first token."""
        return cls(*([0] * batch_size for _ in range(3)))

    def lengths(self) -> list[int]:
        """Tokens whose keys and values each sequence has."""
        return [kept + filled for kept, filled in zip(self.kept, self.filled)]

    def select(self, rows: list[int]) -> "WindowPosition":
        """Of the sequences `rows`."""
        return WindowPosition(*([numbers[row] for row in rows] for numbers in self))

    def merge(self, part: "WindowPosition", rows: list[int]) -> "WindowPosition":
        """The same with the sequences `rows` replaced by `part`."""
        merged = WindowPosition(*map(list, self))
        for numbers, new in zip(merged, part):
            for row, number in zip(rows, new):
                numbers[row] = number
        return merged

    def read(self, count: int) -> "WindowPosition":
        """After `count` more tokens of each sequence."""
        filled, seen = ([number + count for number in numbers] for numbers in (self.filled, self.seen))
        return WindowPosition(filled, self.kept, seen)

    def close(self, eviction: str, sleep_window: int) -> "WindowPosition":
        """After a sleep, which keeps nothing, or with sliding eviction what the next token still sees."""
        kept = [0 if eviction == "hard" else min(length, sleep_window - 1) for length in self.lengths()]
        return WindowPosition([0] * len(kept), kept, self.seen)


class LayerState(NamedTuple):
    """What one layer carries from token to token.

    Args:
        keys, values (`torch.Tensor` of shape `[B, H, K, D]`): those of the open window and, with sliding eviction, of
            the tokens before it that it still sees.
        recurrent (`torch.Tensor` of shape `[B, H, K, V]`): the fast weights.
        conv (`torch.Tensor` of shape `[B, N, W]`): the last inputs of the short convolution.
        start_recurrent, start_conv: both as they were at the start of the window.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    recurrent: torch.Tensor | None = None
    conv: torch.Tensor | None = None
    start_recurrent: torch.Tensor | None = None
    start_conv: torch.Tensor | None = None

    def num_columns(self) -> int:
        """Columns of the keys."""
        return 0 if self.keys is None else self.keys.shape[2]

    def last_columns(self, num_columns: int) -> "LayerState":
        """The same with at most the last `num_columns` columns of the keys and values."""
        if self.num_columns() <= num_columns:
            return self
        return self.columns(self.num_columns() - num_columns, self.num_columns())

    def columns(self, start: int, end: int) -> "LayerState":
        """The same with the columns `start` to `end` of the keys and values, none where that is nothing."""
        if self.keys is None or self.values is None or start >= end:
            return self._replace(keys=None, values=None)
        return self._replace(keys=self.keys[:, :, start:end], values=self.values[:, :, start:end])

    def detach(self) -> "LayerState":
        """The same without gradient."""
        return LayerState(*(None if tensor is None else tensor.detach() for tensor in self))

    def first_rows(self, num_rows: int) -> "LayerState":
        """The first `num_rows` rows."""
        return LayerState(*(None if tensor is None else tensor[:num_rows] for tensor in self))

    def select(self, rows: torch.Tensor | None) -> "LayerState":
        """The rows `rows`, all of them if `None`."""
        return LayerState(*(None if tensor is None else select_rows(tensor, rows) for tensor in self))

    def merge(self, part: "LayerState", rows: torch.Tensor | None, batch_size: int) -> "LayerState":
        """The same with the rows `rows` replaced by `part`."""
        keys = merge_columns(self.keys, part.keys, rows, batch_size, 2)
        values = merge_columns(self.values, part.values, rows, batch_size, 2)
        rest = (merge_rows(old, new, rows, batch_size) for old, new in zip(self[2:], part[2:]))
        return LayerState(keys, values, *rest)


def select_rows(tensor: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The rows `rows` of `tensor`, all of them if `None`."""
    return tensor if rows is None else tensor.index_select(0, rows.to(tensor.device))


def merge_rows(
    whole: torch.Tensor | None, part: torch.Tensor | None, rows: torch.Tensor | None, batch_size: int
) -> torch.Tensor | None:
    """`whole` with the rows `rows` (all if `None`) replaced by `part`; what is absent is zero."""
    if rows is None or (whole is None and part is None):
        return part
    if whole is None:
        whole = part.new_zeros(batch_size, *part.shape[1:]) if part is not None else None
    if part is None and whole is not None:
        part = whole.new_zeros(len(rows), *whole.shape[1:])
    if whole is None or part is None:
        return None
    return whole.index_copy(0, rows.to(whole.device), part.to(whole.dtype))


def merge_columns(
    whole: torch.Tensor | None, part: torch.Tensor | None, rows: torch.Tensor | None, batch_size: int, dim: int
) -> torch.Tensor | None:
    """`merge_rows` of tensors aligned on the right in dimension `dim`."""
    if rows is not None and whole is not None and part is not None:
        length = max(whole.shape[dim], part.shape[dim])
        whole, part = pad_columns(whole, length, dim), pad_columns(part, length, dim)
    return merge_rows(whole, part, rows, batch_size)


def pad_columns(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """`tensor` with zeros on the left up to `length` in dimension `dim`."""
    padding = [0, 0] * (tensor.ndim - 1 - dim) + [length - tensor.shape[dim], 0]
    return nn.functional.pad(tensor, padding) if length > tensor.shape[dim] else tensor


class PassStates:
    """The states of all layers during one pass, as the cache that the layers ask for them and give them to.

    Made for one pass and thrown away. Nothing that was handed in is written to.

    Args:
        states (`Sequence[LayerState]`): the states before the pass, one for each layer.
    """

    offloading = False
    is_compileable = False
    is_sliding: tuple[bool, ...] = ()

    def __init__(self, states: Sequence[LayerState]):
        self.states = list(states)
        # all layers hold the same tokens, and masks are made before any of them takes in more
        self.num_columns = max(state.num_columns() for state in states)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        state = self.states[layer_idx]
        if state.keys is not None and state.values is not None:
            key_states = torch.cat([state.keys, key_states], dim=2)
            value_states = torch.cat([state.values, value_states], dim=2)
        self.states[layer_idx] = state._replace(keys=key_states, values=value_states)
        return key_states, value_states

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.states[layer_idx].recurrent

    def update_recurrent_state(self, recurrent_states: torch.Tensor, layer_idx: int, **kwargs) -> torch.Tensor:
        self.states[layer_idx] = self.states[layer_idx]._replace(recurrent=recurrent_states)
        return recurrent_states

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        conv = self.states[layer_idx].conv
        if conv is not None:
            # for a single token layers write the next state into this one
            conv = conv.clone()
            self.states[layer_idx] = self.states[layer_idx]._replace(conv=conv)
        return conv

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs,
    ) -> torch.Tensor:
        past = self.states[layer_idx].conv
        full = conv_states if past is None else torch.cat([past, conv_states], dim=-1)
        size = full.shape[-1] if conv_kernel_size is None else conv_kernel_size
        kept = pad_columns(full, size, 2)[..., -size:]
        self.states[layer_idx] = self.states[layer_idx]._replace(conv=kept)
        return full

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return layer_idx is not None and self.states[layer_idx].conv is not None

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_columns

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.num_columns

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.num_columns + query_length, 0


class _SleepCacheLayer(CacheLayerMixin):
    """What the cache layers of a sleep model share: they are filled by the model, and have no length to crop."""

    supports_early_init = False

    def lazy_initialization(self, key_states, value_states) -> None:
        """There is nothing to allocate: states are assigned."""

    def update(self, key_states, value_states, *args, **kwargs):
        raise ValueError("the cache of a sleep model takes keys and values from the model alone")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            f"a sleep model's cache cannot be cropped, got `tokens_to_remove` {tokens_to_remove}: fast weights do not "
            "give back what they took in"
        )


class SleepStateLayer(_SleepCacheLayer):
    """Cache slot of one layer."""

    _layer_type = "sleep_state"

    def __init__(self, **kwargs):
        super().__init__()
        self.state = LayerState()

    def reset(self) -> None:
        self.state = LayerState()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.state = self.state.select(beam_idx)

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        repeated = (None if tensor is None else tensor.repeat_interleave(repeats, dim=0) for tensor in self.state)
        self.state = LayerState(*repeated)

    def memory_state(self) -> dict[str, torch.Tensor]:
        """Everything to be saved, by name."""
        return {name: tensor for name, tensor in self.state._asdict().items() if tensor is not None}

    def load_memory_state(self, memory: dict[str, torch.Tensor]) -> None:
        """The reverse of `memory_state`."""
        self.state = LayerState(**memory)


class SleepWindowLayer(_SleepCacheLayer):
    """First cache slot: where every row is in its window, and what sleep makes its passes over.

    Attributes:
        hidden_states (`torch.Tensor` of shape `[B, F, D]` or `None`): the first pass over each row's open window, as
            the last layer that runs in every pass left it.
        filled (`list[int]`): tokens in each row's open window.
        kept (`list[int]`): tokens before the window whose keys and values each row still has.
        seen (`list[int]`): tokens each row has had in all.
        num_columns (`int`): columns of the inputs since this cache was made or loaded, padding included.
    """

    _layer_type = "sleep_window"

    def __init__(self, **kwargs):
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.hidden_states: torch.Tensor | None = None
        self.filled: list[int] = []
        self.kept: list[int] = []
        self.seen: list[int] = []
        self.num_columns = 0

    def get_seq_length(self) -> int:
        return self.num_columns

    def _select(self, rows: list[int]) -> None:
        self.filled, self.kept, self.seen = ([numbers[row] for row in rows] for numbers in self._numbers().values())

    def _numbers(self) -> dict[str, list[int]]:
        return {"filled": self.filled, "kept": self.kept, "seen": self.seen}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.hidden_states is not None:
            self.hidden_states = select_rows(self.hidden_states, beam_idx)
        if self.filled:
            self._select(beam_idx.tolist())

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.hidden_states is not None:
            self.hidden_states = self.hidden_states.repeat_interleave(repeats, dim=0)
        self._select([row for row in range(len(self.filled)) for _ in range(repeats)])

    def memory_state(self) -> dict[str, torch.Tensor]:
        """Everything to be saved, by name. What comes next counts from column 0 again, but not from position 0."""
        memory: dict[str, Any] = {name: torch.tensor(numbers) for name, numbers in self._numbers().items()}
        return memory if self.hidden_states is None else memory | {"hidden_states": self.hidden_states}

    def load_memory_state(self, memory: dict[str, torch.Tensor]) -> None:
        """The reverse of `memory_state`."""
        self.reset()
        self.hidden_states = memory.get("hidden_states")
        self.filled, self.kept, self.seen = (memory[name].tolist() for name in ("filled", "kept", "seen"))


__all__ = [
    "LayerState",
    "PassStates",
    "SleepStateLayer",
    "SleepWindowLayer",
    "WindowPosition",
    "merge_columns",
    "pad_columns",
    "select_rows",
]
