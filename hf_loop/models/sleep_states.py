# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The states of a sleep model's layers, within a pass and in the cache between forward passes.

A state is a tuple of tensors that is never written to: a pass takes states and returns new ones, so that gradient
crosses passes and windows. The sequences of a batch may be at different positions of their windows. Tensors with a
token dimension are therefore aligned on the right: only the last `length[b]` columns of sequence b are its own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .memory_checks import State, check_present, check_states
from .transformers_seams import CacheLayerMixin


class WindowPosition(NamedTuple):
    """The positions of the sequences of a batch in their windows.

    Args:
        filled (`list[int]`): number of tokens in each sequence's open window.
        kept (`list[int]`): number of tokens before the window whose keys and values each sequence still has.
        seen (`list[int]`): number of tokens of each sequence so far.
    """

    filled: list[int]
    kept: list[int]
    seen: list[int]

    @classmethod
    def start(cls, batch_size: int) -> "WindowPosition":
        """Return the position before the first token."""
        return cls(*([0] * batch_size for _ in range(3)))

    def lengths(self) -> list[int]:
        """Return the number of tokens whose keys and values each sequence has."""
        return [kept + filled for kept, filled in zip(self.kept, self.filled)]

    def select(self, indices: list[int]) -> "WindowPosition":
        """Select the sequences `indices`."""
        return WindowPosition(*([numbers[index] for index in indices] for numbers in self))

    def merge(self, part: "WindowPosition", indices: list[int]) -> "WindowPosition":
        """Replace the sequences `indices` by `part`."""
        merged = WindowPosition(*map(list, self))
        for numbers, new in zip(merged, part):
            for index, number in zip(indices, new):
                numbers[index] = number
        return merged

    def read(self, count: int) -> "WindowPosition":
        """Advance each sequence by `count` tokens."""
        filled, seen = ([number + count for number in numbers] for numbers in (self.filled, self.seen))
        return WindowPosition(filled, self.kept, seen)

    def close(self, eviction: str, sleep_window: int) -> "WindowPosition":
        """Start new windows after a sleep: `"hard"` eviction keeps no tokens, `"sliding"` those the next one sees."""
        kept = [0 if eviction == "hard" else min(length, sleep_window - 1) for length in self.lengths()]
        return WindowPosition([0] * len(kept), kept, self.seen)


class LayerState(NamedTuple):
    """The state of one layer call.

    Args:
        keys, values (`torch.Tensor` of shape `[B, H, K, D]`): keys and values of the open window and, with sliding
            eviction, of the tokens before it that it still sees.
        recurrent (`torch.Tensor` of shape `[B, H, K, V]`): the fast weights.
        conv (`torch.Tensor` of shape `[B, N, W]`): the last inputs of the short convolution.
        start_recurrent, start_conv (`torch.Tensor`): the same two at the start of the window.
    """

    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    recurrent: torch.Tensor | None = None
    conv: torch.Tensor | None = None
    start_recurrent: torch.Tensor | None = None
    start_conv: torch.Tensor | None = None

    def num_columns(self) -> int:
        """Return the number of columns of the keys."""
        return 0 if self.keys is None else self.keys.shape[2]

    def last_columns(self, num_columns: int) -> "LayerState":
        """Keep at most the last `num_columns` columns of the keys and values."""
        if self.num_columns() <= num_columns:
            return self
        return self.columns(self.num_columns() - num_columns, self.num_columns())

    def columns(self, start: int, end: int) -> "LayerState":
        """Keep the columns `start` to `end` of the keys and values; both become `None` if there are none."""
        if self.keys is None or self.values is None or start >= end:
            return self._replace(keys=None, values=None)
        return self._replace(keys=self.keys[:, :, start:end], values=self.values[:, :, start:end])

    def detach(self) -> "LayerState":
        """Return the state without gradient."""
        return LayerState(*(None if tensor is None else tensor.detach() for tensor in self))

    def first(self, num_sequences: int) -> "LayerState":
        """Keep the first `num_sequences` sequences."""
        return LayerState(*(None if tensor is None else tensor[:num_sequences] for tensor in self))

    def select(self, indices: torch.Tensor | None) -> "LayerState":
        """Select the sequences `indices`, all of them if `None`."""
        return LayerState(*(None if tensor is None else select_sequences(tensor, indices) for tensor in self))

    def merge(self, part: "LayerState", indices: torch.Tensor | None, batch_size: int) -> "LayerState":
        """Replace the sequences `indices` by `part`."""
        keys = merge_columns(self.keys, part.keys, indices, batch_size, 2)
        values = merge_columns(self.values, part.values, indices, batch_size, 2)
        rest = (merge_sequences(old, new, indices, batch_size) for old, new in zip(self[2:], part[2:]))
        return LayerState(keys, values, *rest)


def select_sequences(tensor: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """Select the sequences `indices` of `tensor`, all of them if `None`."""
    return tensor if indices is None else tensor.index_select(0, indices.to(tensor.device))


def merge_sequences(
    whole: torch.Tensor | None, part: torch.Tensor | None, indices: torch.Tensor | None, batch_size: int
) -> torch.Tensor | None:
    """Replace the sequences `indices` (all if `None`) of `whole` by `part`; a missing tensor counts as zeros."""
    if indices is None or (whole is None and part is None):
        return part
    if whole is None:
        whole = part.new_zeros(batch_size, *part.shape[1:]) if part is not None else None
    if part is None and whole is not None:
        part = whole.new_zeros(len(indices), *whole.shape[1:])
    if whole is None or part is None:
        return None
    return whole.index_copy(0, indices.to(whole.device), part.to(whole.dtype))


def merge_columns(
    whole: torch.Tensor | None, part: torch.Tensor | None, indices: torch.Tensor | None, batch_size: int, dim: int
) -> torch.Tensor | None:
    """Like `merge_sequences`, for tensors that are aligned on the right in dimension `dim`."""
    if indices is not None and whole is not None and part is not None:
        length = max(whole.shape[dim], part.shape[dim])
        whole, part = pad_columns(whole, length, dim), pad_columns(part, length, dim)
    return merge_sequences(whole, part, indices, batch_size)


def pad_columns(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    """Pad `tensor` with zeros on the left, up to `length` in dimension `dim`."""
    padding = [0, 0] * (tensor.ndim - 1 - dim) + [length - tensor.shape[dim], 0]
    return nn.functional.pad(tensor, padding) if length > tensor.shape[dim] else tensor


class PassStates:
    """The cache of one pass, which holds the states of all layers. It does not change the tensors it is made of.

    Args:
        states (`Sequence[LayerState]`): the states before the pass, one for each layer.
    """

    offloading = False
    is_compileable = False
    is_sliding: tuple[bool, ...] = ()

    def __init__(self, states: Sequence[LayerState]):
        self.states = list(states)
        # the same for all layers, and fixed: masks are made before any layer adds columns
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
            # layers that run a single token write the next state into this tensor
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
    """Base class of a sleep model's cache layers, which only the model fills and which have no length to crop."""

    supports_early_init = False

    def lazy_initialization(self, key_states, value_states) -> None:
        """Allocate nothing: states are assigned."""

    def update(self, key_states, value_states, *args, **kwargs):
        raise ValueError("a sleep cache must be filled by the sleep model: pass it to `forward` as `cache`")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError(
            f"a sleep model's cache cannot be cropped, got `tokens_to_remove` {tokens_to_remove}: tokens cannot be "
            "removed from fast weights"
        )


class SleepStateLayer(_SleepCacheLayer):
    """The cache slot of one layer call."""

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
        """Return the tensors to save, by name."""
        return {name: tensor for name, tensor in self.state._asdict().items() if tensor is not None}

    def load_memory_state(self, memory: dict[str, torch.Tensor]) -> None:
        """Restore a `memory_state`."""
        self.state = LayerState(**memory)


class SleepWindowLayer(_SleepCacheLayer):
    """The first cache slot: the positions of the sequences in their windows, and the input of the sleep passes.

    Attributes:
        hidden_states (`torch.Tensor` of shape `[B, F, D]`, *optional*): the tokens of each open window after the first
            pass, at the last layer that runs in every pass.
        filled, kept, seen (`list[int]`): see [`WindowPosition`].
        num_columns (`int`): number of input columns since this cache was made or loaded, padding included.
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

    def _select(self, indices: list[int]) -> None:
        self.filled, self.kept, self.seen = (
            [numbers[index] for index in indices] for numbers in self._numbers().values()
        )

    def _numbers(self) -> dict[str, list[int]]:
        return {"filled": self.filled, "kept": self.kept, "seen": self.seen}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.hidden_states is not None:
            self.hidden_states = select_sequences(self.hidden_states, beam_idx)
        if self.filled:
            self._select(beam_idx.tolist())

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.hidden_states is not None:
            self.hidden_states = self.hidden_states.repeat_interleave(repeats, dim=0)
        self._select([index for index in range(len(self.filled)) for _ in range(repeats)])

    def memory_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors to save, by name. After loading, columns count from 0 again, and positions go on."""
        memory: dict[str, Any] = {name: torch.tensor(numbers) for name, numbers in self._numbers().items()}
        return memory if self.hidden_states is None else memory | {"hidden_states": self.hidden_states}

    @staticmethod
    def check_memory(states: list[State], witness: list[State], config: Any) -> None:
        """Refuse the tensors of a memory file that this model would not have saved.

        Args:
            states (`list[dict]`): the tensors of every cache slot.
            witness (`list[dict]`): those of the model's own memory of one token.
            config (`SleepConfig`): configuration of the model.

        Raises:
            ValueError: names the first tensor that does not fit.
        """
        check_states(states, witness)
        for name in ("filled", "kept", "seen", "recurrent"):
            check_present(states, witness, name, None)
        filled, kept = states[0]["filled"], states[0]["kept"]
        check_present(states, witness, "hidden_states", int(filled.max()))
        for name in ("keys", "values"):
            check_present(states, witness, name, int((kept + filled).max()))
        if filled.any():
            check_present(states, witness, "conv", None)
        if int(filled.max()) >= config.sleep_window or (kept + filled > states[0]["seen"]).any():
            raise ValueError(f"layers.0.filled {filled.tolist()} does not fit windows of {config.sleep_window} tokens")

    def load_memory_state(self, memory: dict[str, torch.Tensor]) -> None:
        """Restore a `memory_state`."""
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
    "select_sequences",
]
