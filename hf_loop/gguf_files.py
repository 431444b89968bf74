"""GGUF files: how transformers is told to read one, and how its weights are stored."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .paths import no_such


SUFFIX = ".gguf"
# types of numbers that are stored as they are
UNQUANTIZED = {"F64", "F32", "F16", "BF16"}


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether a path names a GGUF file."""
    return Path(path).suffix.lower() == SUFFIX


def locate(path: str | os.PathLike) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` finds a checkpoint, its configuration or its tokenizer.

    Args:
        path (`str` or `os.PathLike`): a folder, a repository on the Hub, or a GGUF file.

    Raises:
        OSError: if there is no such GGUF file.
        ValueError: if the package that reads it is not installed.
    """
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": path}
    path = Path(path)
    if not path.is_file():
        raise OSError(no_such("file", path))
    if find_spec("gguf") is None:
        raise ValueError(f"{path} cannot be read without the package gguf; install it with `pip install gguf`")
    return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}


def quantized_types(path: str | os.PathLike) -> list[str]:
    """List the quantized types of the tensors in a GGUF file, such as `Q4_1`; a file of plain numbers has none."""
    from gguf import GGUFReader

    return sorted({tensor.tensor_type.name for tensor in GGUFReader(path).tensors} - UNQUANTIZED)
