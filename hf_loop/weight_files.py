"""Checks the files that hold a checkpoint's weights, without loading them."""

import math
import os
from pathlib import Path

from .files import read_json, read_torch_file, tensor_shapes


# in transformers' order: it reads the first that a folder has
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def check_weight_files(folder: str | os.PathLike) -> None:
    """Check that every weight file of a folder is complete and holds tensors, and that no shard is missing.

    Raises:
        ValueError: if a file is truncated, or is no file of tensors or index; the message names it.
        OSError: if a shard is missing that an index lists.
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensor_shapes(path)
    for name in WEIGHT_FILES:
        file, index = Path(folder) / name, Path(folder) / f"{name}.index.json"
        files = [file] if file.is_file() else shard_files(index) if index.is_file() else []
        if files:
            for path in files:
                if path.suffix == ".bin":
                    read_torch_file(path, "meta")
            return


def shard_files(index: Path) -> list[Path]:
    """Return the files that an index of shards lists, and check that they exist.

    Raises:
        ValueError: if the index is damaged.
        OSError: if a shard is missing.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f"{index} is no index of shards: `weight_map` must name the file of every tensor")
    names = sorted(set(listed.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise OSError(f"{index.parent} lacks {name}, which {index.name} lists")
    return [index.parent / name for name in names]


def count_stored_parameters(folder: str | Path) -> int | None:
    """Count the weights in a folder's safetensors files; a shared weight is stored, and counted, once.

    Returns:
        `int` or `None`: `None` if the folder has no such file.
    """
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        return None
    return sum(math.prod(shape) for path in paths for shape in tensor_shapes(path).values())
