"""Lists what of a model folder goes to the Hub: what a model and its card need, and nothing that lies beside it."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .files import read_json, read_text


logger = logging.get_logger(__name__)

MODEL_FILES = (
    *("README.md", "LICENSE*", "config.json", "generation_config.json"),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_config.json", "adapter_model.safetensors", "loop_lora_config.json", "loop_lora.safetensors"),
    *("tokenizer*.json", "tokenizer*.model", "spiece.model", "vocab.*", "merges.txt", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template*", "additional_chat_templates/*.jinja"),
    # the measurements that the card states
    *("results.json", "puzzle_results.json", "bench.json", "inspect.json"),
)
# the arguments of a run and its recipe, which name files of this machine
OF_THE_RUN = ("training_args.bin", "recipe.yaml")
CARD_LINK = re.compile(r"\]\(([^)\s]+)\)|src=[\"']([^\"']+)[\"']")
# access tokens of the Hub and of other places that models are trained with
TOKEN = re.compile(r"\b(?:hf_|api_org_|ghp_|github_pat_|sk-|AKIA)[A-Za-z0-9_]{16,}")


def published_files(folder: str | os.PathLike) -> list[str]:
    """List the files of a model folder that are uploaded: weights, configurations, tokenizer, code and card.

    Of Python files these are the ones that the configuration names, and those that they import; of figures, those
    that the card shows. Checkpoints, optimizer states, arguments of a training run and its recipe stay here.

    Args:
        folder (`str` or `os.PathLike`): the folder.

    Returns:
        `list[str]`: their paths in the folder, with `/` between the parts.
    """
    folder = Path(folder)
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    found |= {*_code_files(folder), *_linked_files(folder)}
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def check_published(folder: str | os.PathLike) -> None:
    """Refuse to publish a folder whose files hold an access token, or name a path of this machine.

    Args:
        folder (`str` or `os.PathLike`): the folder.

    Raises:
        ValueError: if they do; the message names the file, and the path, but not the token.
    """
    for path, text in _texts(folder, published_files(folder)):
        if TOKEN.search(text):
            raise ValueError(f"{path} holds an access token: remove it, and make it invalid where it came from")
        for value in _local_paths(path):
            raise ValueError(f"{path} names {value!r}, which is on this machine alone: name a repository instead")


def files_to_upload(folder: str | os.PathLike, path_in_repo: str | None = None) -> list[CommitOperationAdd]:
    """List what a trainer uploads, which cannot refuse anything any more: of paths of this machine the last name.

    Args:
        folder (`str` or `os.PathLike`): the folder of the model, or a checkpoint.
        path_in_repo (`str`, *optional*): where a checkpoint goes. It goes whole, without the arguments of the run and
            its recipe.
    """
    folder = Path(folder)
    names = published_files(folder)
    if path_in_repo is not None:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in OF_THE_RUN)
        names = [path.relative_to(folder).as_posix() for path in files]
    texts = dict(_texts(folder, names))
    local = sorted({value for path in texts for value in _local_paths(path)}, key=len, reverse=True)
    if local:
        logger.warning(f"Of {', '.join(local)} the last name alone is published: put the name of a repository there.")
    operations = []
    for name in names:
        text = texts.get(folder / name)
        for value in local if text is not None else ():
            text = str(text).replace(value, Path(value).name)
        place = name if path_in_repo is None else f"{path_in_repo}/{name}"
        operations.append(CommitOperationAdd(place, str(folder / name) if text is None else text.encode()))
    return operations


def _texts(folder: str | os.PathLike, names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Read the files that may name something; the tokens of a vocabulary are no secrets."""
    for name in names:
        path = Path(folder) / name
        if path.suffix in (".json", ".md") and path.name not in ("tokenizer.json", "vocab.json"):
            yield path, read_text(path)


def _local_paths(path: Path) -> list[str]:
    values = _strings(read_json(path)) if path.suffix == ".json" else ()
    return [value for value in values if os.path.isabs(value) and os.path.exists(value)]


def _code_files(folder: Path) -> Iterator[Path]:
    """Find the code that the configuration and the tokenizer name, and what it imports from the folder."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        auto_map = read_json(path).get("auto_map") if path.is_file() else None
        for references in (auto_map or {}).values():
            for reference in references if isinstance(references, list) else [references]:
                module = folder / f"{str(reference).partition('.')[0]}.py"
                if module.is_file():
                    yield module
                    yield from map(Path, get_relative_import_files(module))


def _linked_files(folder: Path) -> Iterator[Path]:
    card = folder / "README.md"
    for link in CARD_LINK.finditer(read_text(card)) if card.is_file() else ():
        path = folder / (link[1] or link[2])
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            yield path


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
