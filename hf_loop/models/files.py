# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of files, and digests by which a file is matched with its model."""

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
    """Yield a temporary path to write to, which is renamed to `path` when the block ends without an error.

    Readers never see a partial file, and an error or a kill leaves the old file unchanged. An error also removes the
    temporary file; a kill leaves it behind, as `.{name}-{random}.tmp`. The file gets the mode of the umask, even if
    the library that writes it makes private files, as safetensors does.

    Args:
        path (`str` or `os.PathLike`): the file to write; its folder must exist.

    Yields:
        `Path`: an empty file in the same folder.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    try:
        # read from the new file: reading the umask itself means setting it, for other threads too
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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


__all__ = ["atomic_path", "digest_config", "digest_weights"]
