# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Holds the tensors of a memory file to what the model itself would have saved."""

import hashlib
import re

import torch


# the dimension of a tensor that grows with the text, by the tensor's name
GROWING = {"keys": 2, "values": 2, "hidden_states": 1}
# tensors that only a longer text has, each like another one
LIKE = {"start_recurrent": "recurrent", "start_conv": "conv"}
# slots after an eviction hold nothing; no model has so many of them for each that holds something
MOST_EMPTY = 1000
NAME = re.compile(r"layers\.(\d{1,9})\.(\w+)")

State = dict[str, torch.Tensor]


def split_states(tensors: State) -> list[State]:
    """Return the tensors of every cache slot, by their names in the slot, up to the last slot that has one.

    Raises:
        ValueError: if a tensor is not named as one of a slot.
    """
    slots: dict[int, State] = {}
    for name, tensor in tensors.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no tensor of a memory")
        slots.setdefault(int(match[1]), {})[match[2]] = tensor
    if not slots or max(slots) > MOST_EMPTY * len(slots):
        raise ValueError(f"it has tensors of {len(slots)} layers, numbered up to {max(slots, default=0)}")
    return [slots.get(slot, {}) for slot in range(max(slots) + 1)]


def check_states(states: list[State], witness: list[State]) -> None:
    """Refuse tensors that are not those of the model, by name, shape and type.

    Args:
        states (`list[dict]`): the tensors of every cache slot; slots at the end that hold nothing are added.
        witness (`list[dict]`): those of the model's own memory of one token. The dimension of the sequences, and what
            grows with a text, may differ from it.

    Raises:
        ValueError: names the first tensor that does not fit.
    """
    if len(states) > len(witness):
        raise ValueError(f"it has {len(states)} layers, and the model's memory has {len(witness)}")
    states += [{} for _ in witness[len(states) :]]
    counts = next((tensor for name, tensor in states[0].items() if name in witness[0] and tensor.ndim == 1), None)
    if counts is None or len(counts) == 0:
        raise ValueError("layers.0 lacks the number of tokens")
    for slot, (state, own) in enumerate(zip(states, witness)):
        for name, tensor in state.items():
            like = own.get(LIKE.get(name, name))
            if like is None:
                raise ValueError(f"layers.{slot}.{name} is no tensor of this model's memory")
            shape = [len(counts), *like.shape[1:]]
            if name in GROWING and tensor.ndim == like.ndim:
                shape[GROWING[name]] = tensor.shape[GROWING[name]]
            if list(tensor.shape) != shape or tensor.dtype != like.dtype:
                raise ValueError(
                    f"layers.{slot}.{name} is {list(tensor.shape)} of {tensor.dtype}, must be {shape} of {like.dtype}"
                )
            if tensor.ndim == 1 and (tensor < 0).any():
                raise ValueError(f"layers.{slot}.{name} must not be negative, got {tensor.tolist()}")


def check_present(states: list[State], witness: list[State], name: str, size: int | None) -> None:
    """Refuse a memory in which a tensor is missing, or has another size where it grows.

    Args:
        states (`list[dict]`): the tensors of every cache slot.
        witness (`list[dict]`): those of the model's own memory.
        name (`str`): the tensor's name in the slots.
        size (`int`, *optional*): its size in the dimension that grows; with 0 it may be missing.

    Raises:
        ValueError: names the first tensor that is missing or has another size.
    """
    for slot, (state, own) in enumerate(zip(states, witness)):
        if name in own and name not in state and size != 0:
            raise ValueError(f"layers.{slot}.{name} is missing")
        if name in state and size is not None and state[name].shape[GROWING[name]] != size:
            raise ValueError(f"layers.{slot}.{name} holds {state[name].shape[GROWING[name]]} tokens, must hold {size}")


def content_digest(tensors: State) -> str:
    """Return a digest of tensors: their names, shapes, types and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


__all__ = ["State", "check_present", "check_states", "content_digest", "split_states"]
