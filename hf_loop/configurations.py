"""The one place that reads a model's `config.json`. Whatever is wrong with it is said in one line that names the file.

transformers takes many a wrong entry as it is, and fails later and elsewhere. The code that a checkpoint brings is
never run.
"""

import difflib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .field_values import fits, readable
from .files import fault_named, read_json
from .gguf_files import is_gguf, locate
from .models.checks import RANGES, check_range
from .paths import find_model


CONFIG_FILE, ADAPTER_CONFIG_FILE = "config.json", "adapter_config.json"
DTYPE_FIELDS = ("dtype", "torch_dtype")
FIELD_TYPES: dict[str, Any] = {
    "architectures": list[str] | None,
    "auto_map": dict | None,
    "quantization_config": dict | None,
}


def read_config(path: str | os.PathLike, **options: Any) -> PreTrainedConfig:
    """Read the configuration of a model, as `AutoConfig.from_pretrained` does.

    Args:
        path (`str` or `os.PathLike`): a folder, a repository on the Hub, or a GGUF file.
        options: fields of the configuration to set otherwise than the file does.

    Raises:
        ValueError: if the file describes no model that transformers or hf_loop has; the message names it.
        OSError: if there is no such folder, repository or file, or it has no `config.json`.
    """
    if is_gguf(path):
        with fault_named(path):
            return AutoConfig.from_pretrained(**locate(path), **options)
    file = _find(path, CONFIG_FILE)
    if file is None:
        raise OSError(f"{path} has no {CONFIG_FILE}, so it is no model")
    stored = read_json(file)
    _check_model_type(stored, file)
    _check_fields(stored, file)
    with fault_named(file):
        for name in stored.keys() & RANGES.keys():
            # with some sizes a model could never be made
            check_range(name, stored[name])
        return AutoConfig.from_pretrained(path, trust_remote_code=False, **options)


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether a folder or repository holds an adapter of PEFT alone, and no model.

    Raises:
        ValueError: if the file that describes the adapter is damaged.
        OSError: if there is no such folder or repository, or no base model of the name that the adapter has for it.
    """
    if _find(path, CONFIG_FILE) is not None:
        return False
    file = _find(path, ADAPTER_CONFIG_FILE)
    base = read_json(file).get("base_model_name_or_path") if file is not None else None
    if isinstance(base, str) and base:
        # its name would be taken for one on the Hub
        find_model(base)
    return file is not None


def _find(path: str | os.PathLike, name: str) -> Path | None:
    """Return a file of a folder or of a repository on the Hub, `None` if it has none of this name."""
    folder = find_model(path)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(os.fspath(path), name))
    except EntryNotFoundError:
        return None


def _check_model_type(stored: dict[str, Any], file: Path) -> None:
    model_type = stored.get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"{file}: `model_type` must be the name of an architecture, got {model_type!r}")
    if model_type not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(model_type, CONFIG_MAPPING, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{file}: `model_type` {model_type!r} is none that transformers or hf_loop has{hint}")


def _check_fields(stored: dict[str, Any], file: Path, where: str = "") -> None:
    """Refuse entries that transformers does not look at before it uses them, here and in the parts' configurations."""
    for name, value in stored.items():
        if name in DTYPE_FIELDS and not _is_dtype(value):
            raise ValueError(f"{file}: `{where}{name}` must be a floating-point type, as 'bfloat16', got {value!r}")
        if not fits(value, FIELD_TYPES.get(name, Any)):
            raise ValueError(f"{file}: `{where}{name}` must be {readable(FIELD_TYPES[name])}, got {value!r}")
        if name.endswith("_config") and name not in FIELD_TYPES and isinstance(value, dict):
            _check_fields(value, file, f"{where}{name}.")


def _is_dtype(value: Any) -> bool:
    if isinstance(value, dict):
        # of the parts of a composite model
        return all(map(_is_dtype, value.values()))
    dtype = getattr(torch, value, None) if isinstance(value, str) else None
    return value is None or value == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
