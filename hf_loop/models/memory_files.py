# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Saving a model's memory to a file, which only the same model can load.

A memory is a cache whose size does not grow with the text. The file holds the state of every cache slot, the version
of the format and a fingerprint of the model.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import Cache

from .evaluation_mode import evaluation_mode
from .files import atomic_path, digest_config, digest_weights
from .memory_checks import content_digest, split_states


FORMAT, FORMAT_VERSION = "hf_loop.memory", "1"
# number of values of each weight in the fingerprint
NUM_SAMPLES = 64
# fields of a configuration that do not affect a memory
IGNORED_FIELDS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}


class MemoryMixin:
    """Mixin with `save_memory` and `load_memory`, for models whose cache layers have a `memory_state`."""

    config: Any
    device: Any

    def save_memory(self, cache: Cache, path: str | os.PathLike) -> None:
        """Write a memory to a file, atomically.

        Args:
            cache (`Cache`): the cache that `forward` or `generate` returned.
            path (`str` or `os.PathLike`): the file to write, in safetensors format.

        Raises:
            ValueError: if the cache was not made by a model of this family, or is empty, or the file's folder does not
                exist.
        """
        layers: Any = getattr(cache, "layers", None)
        if not layers or any(not hasattr(layer, "memory_state") for layer in layers):
            raise ValueError(
                f"`cache` must be a cache that a {self.config.model_type} model has filled, got {type(cache).__name__}"
            )
        tensors = {
            f"layers.{index}.{name}": tensor.detach().to("cpu").contiguous().clone()
            for index, layer in enumerate(layers)
            for name, tensor in layer.memory_state().items()
        }
        if not tensors:
            raise ValueError("`cache` holds no memory yet: pass it to `forward` or `generate` first")
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "fingerprint": self.fingerprint()}
        metadata |= {"model_type": self.config.model_type, "content": content_digest(tensors)}
        metadata["num_slots"] = str(len(layers))
        target = Path(path)
        if not target.absolute().parent.is_dir():
            raise ValueError(f"`path` must be in a folder that exists, got {str(path)!r}")
        with atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def load_memory(self, path: str | os.PathLike) -> Cache:
        """Load a memory that this model saved.

        `generate(new_ids, cache=memory)` then takes only the tokens that follow the text in the memory.

        Args:
            path (`str` or `os.PathLike`): the file.

        Returns:
            `Cache`: the memory, to pass to `forward` or `generate` as `cache`.

        Raises:
            ValueError: if the file is not a memory, or is one of another format version or model.
        """
        if not Path(path).is_file():
            raise ValueError(f"`path` must be a memory file, got {str(path)!r}, which is not a file")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            tensors = load_file(path, device=str(self.device))
        except SafetensorError as error:
            raise ValueError(f"`path` must be a memory file, but {str(path)!r} cannot be read: {error}") from error
        expected = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model_type": self.config.model_type,
            "fingerprint": self.fingerprint(),
        }
        for name, value in expected.items():
            if metadata.get(name) != value:
                raise ValueError(
                    f"`path` must be a memory file of this model, got {str(path)!r}: its {name} is "
                    f"{metadata.get(name)!r}, must be {value!r}"
                )
        try:
            states = split_states(tensors)
            # files of earlier versions have neither entry
            num_slots = metadata.get("num_slots", str(len(states)))
            if not num_slots.isdecimal() or len(num_slots) > len(str(len(states))) + 3:
                raise ValueError(f"its num_slots is {num_slots!r}")
            witness = self._memory_of_one_token(int(num_slots))
            own = [layer.memory_state() for layer in witness.layers]
            type(witness.layers[0]).check_memory(states, own, self.config)
            if metadata.get("content", content := content_digest(tensors)) != content:
                raise ValueError("its tensors are not those that were saved")
        except ValueError as error:
            raise ValueError(f"`path` must be a memory file of this model, got {str(path)!r}: {error}") from error
        for layer, state in zip(witness.layers, states):
            layer.reset()
            layer.load_memory_state(state)
        return witness

    def _memory_of_one_token(self: Any, num_slots: int) -> Any:
        """Return the memory of a text of one token, with the number of loops that makes `num_slots` cache slots."""
        loops = {}
        if self.config.has_loops and num_slots != self.config.num_hidden_layers:
            loops["num_loops"] = self.config.loops_of(num_slots)
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with evaluation_mode(self):
            return self(input_ids=token, use_cache=True, **loops).cache

    def fingerprint(self: Any) -> str:
        """Return a digest of the configuration and of a sample of every weight. It also depends on the dtype, because
        a memory does."""
        digest = hashlib.blake2b(digest_size=16)
        digest_config(digest, self.config, IGNORED_FIELDS, inner=True)
        digest_weights(digest, self, sorted(self.named_parameters()), _describe, _sample)
        return digest.hexdigest()


# part of the file format: a change would make existing memory files unrecognizable
def _describe(name: str, weight: torch.Tensor) -> str:
    return f"{name}{tuple(weight.shape)}{weight.dtype}"


def _sample(weight: torch.Tensor) -> torch.Tensor:
    values = weight.flatten()
    places = torch.linspace(0, len(values) - 1, min(NUM_SAMPLES, len(values)), dtype=torch.float64).long()
    return values[places.to(values.device)].float()


__all__ = ["MemoryMixin"]
