"""Files outside `models/`: writes them whole or not at all, digests models, and reads text, JSON and weights."""

import codecs
import json
import os
import re
import reprlib
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

# defined in `models/`, because the files of that folder must work without the rest of the library
from .models.files import atomic_path, digest_config, digest_weights, use_umask_mode, write_errors_named
from .output_folders import folder_lock, whole_folder


# the byte-order marks that editors and PowerShell write. UTF-32's is longer and begins with UTF-16's
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# torch's message for a pickle that is more than tensors
UNSAFE_NAME = re.compile(r"GLOBAL (\S+)")
LONGEST_MESSAGE = 300


def read_text(path: str | os.PathLike) -> str:
    """Read a text file of the user's, without its byte-order mark.

    The encoding is the one that the mark says, and UTF-8 without a mark.

    Args:
        path (`str` or `os.PathLike`): the file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not text in its encoding; the message names it.
    """
    with open(path, "rb") as file:
        start = file.peek(4)[:4]
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
        if encoding == "utf-8" and b"\0" in start:
            raise ValueError(f"{path} is not UTF-8 text: it begins with {start!r}; save it as UTF-8")
        try:
            with TextIOWrapper(file, encoding=encoding) as text:
                return text.read()
        except UnicodeError as error:
            raise ValueError(f"{path} is not {encoding.removesuffix('-sig').upper()} text: {error}") from error


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not JSON, or holds something other than an object; the message names it.
    """
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {reprlib.repr(data)}")
    return data


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all (see [`atomic_path`])."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def fault_named(name: object) -> Generator[None]:
    """Turn any error that a user's file causes in the libraries that read it into a `ValueError` that names the file.

    Those libraries fail in many ways where they were not made for what they are given. The first error is kept as the
    cause.

    Args:
        name (`object`): the file or checkpoint that is read inside the `with` block.

    Raises:
        ValueError: if there was an error other than an `OSError`, which names what it is about itself.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(_describe_fault(name, error)) from error


def _describe_fault(name: object, error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, UnpicklingError) or "weights_only" in message:
        # torch's own message tells how to run what the file says
        unsafe = UNSAFE_NAME.search(message)
        names = f": it names {unsafe[1]} and may be malicious; nothing of it was run" if unsafe else ""
        return f"{name} is truncated or damaged, or no file of tensors{names}"
    if isinstance(error, SafetensorError | EOFError) or "PytorchStreamReader" in message:
        # torch's message continues with a page of advice
        return f"{name} is truncated or damaged: {message.split('. ')[0] or 'it ends too early'}"
    if str(name) in message:
        return message
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{name}: {kind}{textwrap.shorten(message, LONGEST_MESSAGE, placeholder=' ...')}"


def read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file by name, on the CPU, and its metadata.

    Raises:
        ValueError: if the file is truncated or is no safetensors file; the message names it.
    """
    with fault_named(file), safe_open(file, framework="pt") as opened:
        # `opened` is no dict: it has `keys` but cannot be iterated over, so the rule's advice would fail
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 a safetensors file is no dict
        return tensors, opened.metadata() or {}


def read_torch_file(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a dictionary of tensors that torch saved. No code in the file is run.

    Args:
        file (`Path`): the file, such as `pytorch_model.bin`.
        device (`str`, *optional*, defaults to `"cpu"`): where the tensors go; on `"meta"` they have no values.

    Raises:
        ValueError: if the file is truncated or holds something else; the message names it.
    """
    with fault_named(file):
        tensors = torch.load(file, map_location=device, weights_only=True)
    if not isinstance(tensors, dict):
        raise ValueError(f"{file} must hold a dictionary of tensors, got a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{file} must hold a dictionary of tensors, but {name!r} is a {type(tensor).__name__}")
    return tensors


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the shape of every tensor of a safetensors file, by name, from the file's header.

    Raises:
        ValueError: if the file is truncated or is no safetensors file; the message names it.
    """
    with fault_named(file), safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 no dict


__all__ = [
    "atomic_path",
    "digest_config",
    "digest_weights",
    "fault_named",
    "folder_lock",
    "read_json",
    "read_safetensors",
    "read_text",
    "read_torch_file",
    "tensor_shapes",
    "use_umask_mode",
    "whole_folder",
    "write_errors_named",
    "write_text",
]
