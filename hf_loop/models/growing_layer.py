# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A cache layer whose tensors are views of buffers with room for more tokens."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


# positions that a new buffer has room for beyond those it is made for, beside as many again
ROOM = 64


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` without its copy of all keys and values for every new token.

    A looped model has a slot for every layer call, each with few tokens: the copies cost as much as the attention.
    `keys` and `values` are views of buffers, into which an update writes behind their end. Other tensors, such as
    `reorder_cache` puts in their place, and shorter views get new buffers: a shallow copy of the layer may still use
    what stands there. `rewind` tells that none does.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.buffers: Any = None
        # length of the buffers' content, shared by shallow copies of the layer
        self.filled: list[int] = [0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # writing into a buffer would change what backward needs, and its length would be a constant of a graph
        if key_states.requires_grad or value_states.requires_grad or torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length, new = self.get_seq_length(), (key_states, value_states)
        end = length + key_states.shape[-2]
        if self.buffers is None or length != self.filled[0] or not self._fits(end, key_states):
            self.buffers, self.filled = tuple(_buffer(states, end) for states in new), [length]
            if length:
                kept: Any = self.keys, self.values
                for buffer, past in zip(self.buffers, kept):
                    buffer[..., :length, :] = past
        for buffer, states in zip(self.buffers, new):
            buffer[..., length:end, :] = states
        self.filled[0] = end
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def rewind(self) -> None:
        """Let the next update write behind `keys` and `values` over what the buffers hold there."""
        self.filled[0] = self.get_seq_length()

    def _fits(self, end: int, key_states: torch.Tensor) -> bool:
        buffer: torch.Tensor = self.buffers[0]
        past: Any = self.keys
        if end > buffer.shape[-2] or buffer.shape[:-2] != key_states.shape[:-2] or buffer.device != key_states.device:
            return False
        # a tensor of inference mode cannot be written to outside of it
        if buffer.is_inference() and not torch.is_inference_mode_enabled():
            return False
        return past.numel() == 0 or (past.data_ptr() == buffer.data_ptr() and past.stride() == buffer.stride())


def _buffer(states: torch.Tensor, end: int) -> torch.Tensor:
    return states.new_empty(*states.shape[:-2], 2 * end + ROOM, states.shape[-1])


__all__ = ["GrowingLayer"]
