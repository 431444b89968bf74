"""Files outside `models/`: writes them whole or not at all, makes digests of models, and reads safetensors files."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open

# defined in `models/`, because the files of that folder must work without the rest of the library
from .models.files import atomic_path, digest_config, digest_weights


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all (see [`atomic_path`])."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def damage_named(name: object) -> Generator[None]:
    """Turn the errors of the readers of safetensors files and of pickles for a damaged file into a `ValueError`.

    Args:
        name (`object`): the file or checkpoint that is read inside the `with` block.

    Raises:
        ValueError: if the file is truncated or damaged, or holds something other than tensors.
    """
    try:
        yield
    except (SafetensorError, UnpicklingError, EOFError) as error:
        # torch's message continues with a page of advice: keep its first sentence
        raise ValueError(f"{name} is truncated or damaged: {str(error).split('. ')[0]}") from error
    except RuntimeError as error:
        # only errors of torch's reader of zip archives
        if "PytorchStreamReader" not in str(error):
            raise
        raise ValueError(f"{name} is truncated or damaged: {str(error).split('. ')[0]}") from error


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file by name, on the CPU, and its metadata.

    Raises:
        ValueError: if the file is truncated or is no safetensors file; the message names it.
    """
    with damage_named(file), safe_open(file, framework="pt") as opened:
        # `opened` is no dict: it has `keys` but cannot be iterated over, so the rule's advice would fail
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 a safetensors file is no dict
        return tensors, opened.metadata() or {}


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a safetensors file, by name, from the file's header.

    Raises:
        ValueError: if the file is truncated or is no safetensors file; the message names it.
    """
    with damage_named(file), safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 no dict


__all__ = [
    "atomic_path",
    "damage_named",
    "digest_config",
    "digest_weights",
    "read_safetensors",
    "tensor_shapes",
    "write_text",
]
