# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and digests that tell which model a file belongs to."""

import json
import os
import secrets
import stat
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .offloading import weight_values


@contextmanager
def atomic_path(path: str | os.PathLike) -> Generator[Path]:
    """Give a path to write to, which is renamed to `path` once the block has ended without an error.

    A reader never sees half a file, and an error or a kill leaves the old file as it was. After an error no temporary
    file stays; after a kill one does, `.{name}-{random}.tmp`. The file gets the mode that the umask gives, also where
    the library that writes it makes private files, as safetensors does.

    Args:
        path (`str` or `os.PathLike`): the file to write; its folder must exist.

    Returns:
        `Path`: an empty file in the same folder.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    try:
        # asked of the file system: the umask cannot be read without setting it, for other threads too
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def digest_config(digest: Any, config: Any, ignored: Collection[str], *, inner: bool) -> None:
    """Feed a digest the fields of a configuration.

    Args:
        digest (`hashlib` object): changed.
        config (`PreTrainedConfig`): the configuration.
        ignored (`Collection[str]`): names of fields that do not count.
        inner (`bool`): whether they do not count in the configurations inside it either.
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
    """Feed a digest a label and some values of each weight, so that a large model takes no longer than a small one.

    What is fed decides which files are still recognised: `label` and `sample` are the file format's.

    Args:
        digest (`hashlib` object): changed.
        model (`nn.Module`): the model; values that are offloaded are brought.
        weights (`Iterable[tuple[str, torch.Tensor]]`): its weights by name, in the order that counts.
        label (`Callable`): a weight's name and form as text.
        sample (`Callable`): the values that count, out of a weight's.
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


__all__ = ["atomic_path", "digest_config", "digest_weights"]
