# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of files, and digests by which a file is matched with its model."""

import errno
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .offloading import weight_values


def scratch_path(target: Path) -> Path:
    """Return a new path beside `target`, to write to before it is renamed to `target`: `.{name}-{random}.tmp`."""
    return target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")


# in the messages of safetensors' writer, and of torch's writer of zip archives
WRITER_ERRORS = ("I/O error", "PytorchStreamWriter", "inline_container.cc", "iostream error")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Generator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` when the block ends without an error.

    Readers never see a partial file, and an error or a kill leaves the old file unchanged. An error also removes the
    temporary file; a kill leaves it behind, as `.{name}-{random}.tmp`. The file gets the mode of the umask, even if
    the library that writes it makes private files, as safetensors does.

    Args:
        path (`str` or `os.PathLike`): the file to write; its folder must exist. A symbolic link stays one, and the
            file that it names is written.

    Yields:
        `Path`: an empty file in the same folder.

    Raises:
        ValueError: if `path` is a device, a pipe or a folder, which a rename would replace.
        OSError: if the file cannot be written, for example because the disk is full; the message names it.
    """
    target = Path(path)
    if target.is_symlink():
        target = target.resolve()
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} is no regular file; give another name")
    temporary = scratch_path(target)
    try:
        with write_errors_named(target):
            temporary.touch(exist_ok=False)
            # read from the new file: reading the umask itself means setting it, for other threads too
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)
            write_through(temporary)
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def write_errors_named(path: str | os.PathLike) -> Generator[None]:
    """Turn the errors of the writers of safetensors and of torch's files for a full disk into an `OSError`.

    Args:
        path (`str` or `os.PathLike`): the file or folder that is written inside the `with` block.

    Raises:
        OSError: if the block cannot write; the message names `path`.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        # `safetensors` has errors of its own, and torch's writer of zip archives raises `RuntimeError`
        message = str(error)
        if "No space left on device" in message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if any(text in message for text in WRITER_ERRORS):
            raise OSError(f"{path} cannot be written: {_why(path) or message.split('. ')[0]}") from error
        raise


def _why(path: str | os.PathLike) -> str | None:
    """Try what the writer does not tell: whether the disk under a file or folder is full."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        return os.strerror(error.errno or errno.EIO)
    return None


def write_through(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk, so that a rename never comes first."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def use_umask_mode(folder: str | os.PathLike) -> None:
    """Give a folder's safetensors files the mode of the umask: that library makes private files."""
    files = list(Path(folder).glob("*.safetensors"))
    if files:
        probe = scratch_path(files[0])
        probe.touch(exist_ok=False)
        mode = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        for file in files:
            file.chmod(mode)


def digest_config(digest: Any, config: Any, ignored: Collection[str], *, inner: bool) -> None:
    """Update a digest with the fields of a configuration.

    Args:
        digest (`hashlib._Hash`): the digest.
        config (`PreTrainedConfig`): the configuration.
        ignored (`Collection[str]`): names of fields to leave out.
        inner (`bool`): whether to leave them out of nested configurations too.
    """
    fields = _without(config.to_dict(), ignored, inner)
    digest.update(json.dumps(fields, sort_keys=True, default=str).encode())


def digest_weights(
    digest: Any,
    model: nn.Module,
    weights: Iterable[tuple[str, torch.Tensor]],
    label: Callable[[str, torch.Tensor], str],
    sample: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Update a digest with a label and a sample of the values of each weight, which is fast for large models too.

    `label` and `sample` belong to a file format: changing them makes existing files unrecognizable.

    Args:
        digest (`hashlib._Hash`): the digest.
        model (`nn.Module`): the model; offloaded values are loaded.
        weights (`Iterable[tuple[str, torch.Tensor]]`): its weights by name, in a fixed order.
        label (`Callable`): describes the name and form of a weight as text.
        sample (`Callable`): selects values of a weight.
    """
    for name, weight in weights:
        digest.update(label(name, weight).encode())
        values = weight_values(model, name) if weight.is_meta else weight.detach()
        digest.update(sample(values).cpu().numpy().tobytes())


def _without(fields: dict[str, Any], ignored: Collection[str], inner: bool) -> dict[str, Any]:
    return {
        name: _without(value, ignored, inner) if inner and isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in ignored
    }


__all__ = [
    "atomic_path",
    "digest_config",
    "digest_weights",
    "scratch_path",
    "use_umask_mode",
    "write_errors_named",
    "write_through",
]
