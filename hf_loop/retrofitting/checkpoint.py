"""Reading a checkpoint that no transformers class opens: its configuration, its tensors and its tokenizer's ids."""

import json
import os
import re
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from ..files import read_json, read_safetensors, read_text, read_torch_file, write_text
from ..loading import GENERATION_FILE, read_generation_config
from ..paths import find_model
from ..weight_files import shard_files


CONFIG_FILE = "config.json"
# beside the state dicts of HRM and TRM, which their code names by the step; people rename them
PUZZLE_CONFIG_FILE = "all_config.yaml"
PUZZLE_WEIGHT_FILE = re.compile(r"checkpoint|step_(\d+)(\.pth?)?|model\.pth?")
# what else lies beside them: code, documents, logs, and predictions as large as the weights
NO_PUZZLE_WEIGHTS = (
    "*.py",
    "*.yaml",
    "*.yml",
    "*.json",
    "*.jsonl",
    "*.md",
    "*.txt",
    "*.log",
    "*.csv",
    "*.png",
    "*preds*",
)
NO_PUZZLE_WEIGHTS += (".*", "*.npy", "*.zip", "LICENSE*")
# the first of these that a folder has holds its weights; each may be split into shards that an index lists
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt")
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The `config.json`, or else the `all_config.yaml`, of a folder or of a repository on the Hub, as a dictionary.

    Raises:
        OSError: there is no such folder or repository, or it has neither file.
        ValueError: the file is not a JSON object, or no mapping in YAML.
    """
    file = find_config(path)
    if file.name == CONFIG_FILE:
        return read_json(file)
    text = read_text(file)
    try:
        # as in recipes: `1e-05` is a number, which it is not in YAML 1.1
        config: Any = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, RecursionError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a mapping, got {config!r:.40}")
    return config


def find_config(path: str | os.PathLike) -> Path:
    """The file that describes a model: `config.json`, or else `all_config.yaml`.

    Raises:
        OSError: there is neither.
    """
    folder = find_model(path)
    if folder is not None:
        for name in (CONFIG_FILE, PUZZLE_CONFIG_FILE):
            if (folder / name).is_file():
                return folder / name
        raise OSError(f"{path} has no {CONFIG_FILE}, so it is no model")
    try:
        return Path(hf_hub_download(str(path), CONFIG_FILE))
    except EntryNotFoundError as error:
        try:
            return Path(hf_hub_download(str(path), PUZZLE_CONFIG_FILE))
        except EntryNotFoundError:
            raise error from None


def locate(path: str | os.PathLike) -> Path:
    """The folder of a checkpoint; the configuration, weights and tokenizer of a repository are downloaded first."""
    found = find_model(path)
    if found is not None:
        return found
    folder = Path(snapshot_download(str(path), allow_patterns=["*.json", PUZZLE_CONFIG_FILE, *TOKENIZER_PATTERNS]))
    if (folder / PUZZLE_CONFIG_FILE).is_file():
        return Path(snapshot_download(str(path), ignore_patterns=[*NO_PUZZLE_WEIGHTS, "*/*"]))
    for name in WEIGHT_FILES:
        stem, suffix = name.rsplit(".", 1)
        folder = Path(snapshot_download(str(path), allow_patterns=[name, f"{stem}-*-of-*.{suffix}"]))
        if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
            break
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights.

    Raises:
        OSError: there are none, or a shard is missing; the message names it.
        ValueError: beside an `all_config.yaml`, which of several files holds them is not clear.
    """
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return shard_files(index)
        if (folder / name).is_file():
            return [folder / name]
    if (folder / PUZZLE_CONFIG_FILE).is_file():
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        names = [name for name in names if not any(fnmatch(name, pattern) for pattern in NO_PUZZLE_WEIGHTS)]
        named = [match for match in map(PUZZLE_WEIGHT_FILE.fullmatch, names) if match is not None]
        if named:
            # of several steps the last
            last = max(named, key=lambda match: (int(match[1] or -1), match[0]))
            return [folder / last[0]]
        if len(names) > 1:
            raise ValueError(
                f"{folder} must hold one file of weights beside {PUZZLE_CONFIG_FILE}, got {', '.join(names)}"
            )
        if names:
            return [folder / names[0]]
    raise OSError(f"{folder} holds no weights ({', '.join(WEIGHT_FILES)})")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name, on the CPU; safetensors files stay mapped, not copied.

    Raises:
        OSError: there are none, or a shard is missing.
        ValueError: a file is damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            tensors |= read_safetensors(file)[0]
        else:
            tensors |= read_torch_file(file)
    return tensors


def tokenizer_token_ids(folder: Path) -> dict[str, int]:
    """The special token ids that a folder's tokenizer gives, by the names a configuration has for them.

    Returns:
        `dict[str, int]`: Empty if there is no `tokenizer.json`; without the tokens that the tokenizer does not have.
    """
    folder = tokenizer_folder(folder)
    if not (folder / "tokenizer.json").is_file():
        return {}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def published_generation_config(folder: Path, config: PreTrainedConfig, settings: dict[str, Any]) -> GenerationConfig:
    """The generation configuration of a checkpoint, with the special tokens of the converted model.

    Args:
        folder (`Path`): the checkpoint, with or without a `generation_config.json`.
        config (`PreTrainedConfig`): the converted model's configuration. Where it has no such token, that of the file
            counts. A text ends with its end tokens and with those of the file, which often has the end of a turn
            besides.
        settings (`dict`): what else it says.

    Raises:
        ValueError: the file is damaged, or a setting has a value that none may have; the message names the file.
    """
    stored = {} if read_generation_config(folder) is None else read_json(folder / GENERATION_FILE)
    # transformers leaves out our settings of a file that says it was made of a model's configuration
    stored.pop("_from_model_config", None)
    own = {name: getattr(config, name) for name in SPECIAL_TOKENS}
    ends, stored_ends = _list(own["eos_token_id"]), _list(stored.get("eos_token_id"))
    if set(stored_ends) - set(ends):
        own["eos_token_id"] = list(dict.fromkeys([*ends, *stored_ends]))
    stored |= {name: value for name, value in own.items() if value is not None} | settings
    # read, not made: what was changed transformers refuses to save where two settings contradict each other
    with TemporaryDirectory() as temporary:
        write_text(Path(temporary) / GENERATION_FILE, json.dumps(stored))
        return GenerationConfig.from_pretrained(temporary)


def _list(token_ids: int | list[int] | None) -> list[int]:
    return [] if token_ids is None else token_ids if isinstance(token_ids, list) else [token_ids]


def tokenizer_folder(folder: Path) -> Path:
    """Where a checkpoint's tokenizer is: in its folder, or in `tokenizer/` of it."""
    nested = folder / "tokenizer"
    return nested if nested.is_dir() and not (folder / "tokenizer.json").is_file() else folder


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that belong to its tokenizer."""
    folder = tokenizer_folder(folder)
    return sorted(path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern) if path.is_file())
