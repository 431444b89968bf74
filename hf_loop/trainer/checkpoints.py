"""Checkpoints of training runs: which are whole, which is the newest, what has changed since, which are dropped."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import tensor_shapes
from ..models.files import scratch_path
from ..models.memory_files import IGNORED_FIELDS
from ..weight_files import check_weight_files


CHECKPOINT_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# any of these is, or holds, the weights of a model or an adapter; the last two are of FSDP and DeepSpeed
WEIGHTS = (
    "model*.safetensors",
    "pytorch_model*.bin",
    "adapter_model.*",
    "*/adapter_model.*",
    "pytorch_model_fsdp*",
    "global_step*",
)
# fields of a configuration that training or saving sets, or that change nothing that is computed
FREE_FIELDS = IGNORED_FIELDS | {"_attn_implementation", "torch_dtype"}


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints of a run, the newest first."""
    named = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    steps = [(int(match[1]), path) for match, path in named if match]
    return [path for _, path in sorted(steps, reverse=True)]


def fault_of(checkpoint: Path, needed: Iterable[str]) -> str | None:
    """Say what keeps a run from going on from a checkpoint; `None` if every file is there and whole.

    Args:
        checkpoint (`Path`): the folder.
        needed (`Iterable[str]`): names or patterns of the files, beside weights and state, that the run needs.
    """
    for name in (TRAINER_STATE_NAME, *needed):
        if not any(checkpoint.glob(name)):
            return f"it has no {name}"
    if not any(any(checkpoint.glob(pattern)) for pattern in WEIGHTS):
        return "it has no weights"
    for path in sorted(checkpoint.rglob("*")):
        read = READERS.get(path.suffix)
        if read is not None and path.is_file():
            try:
                read(path)
            except (ValueError, zipfile.BadZipFile):
                return f"{path.relative_to(checkpoint)} is cut off or damaged"
    try:
        check_weight_files(checkpoint)
        step = read_state(checkpoint).global_step
    except (ValueError, OSError) as error:
        return str(error)
    match = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if match and int(match[1]) != step:
        return f"{TRAINER_STATE_NAME} is of step {step}"
    return None


def read_state(checkpoint: Path) -> TrainerState:
    """Read the state of the trainer.

    Raises:
        ValueError: if the file does not hold one.
    """
    path = checkpoint / TRAINER_STATE_NAME
    try:
        state = TrainerState.load_from_json(str(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{TRAINER_STATE_NAME} holds no state of a trainer: {error}") from error
    if not isinstance(state.global_step, int) or not isinstance(state.stateful_callbacks, dict):
        raise ValueError(f"{TRAINER_STATE_NAME} holds no state of a trainer")
    return state


def _read_json(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    if path.name in ("config.json", "adapter_config.json") and not isinstance(content, dict):
        raise ValueError(content)


def _read_archive(path: Path) -> None:
    # torch's files are zip archives, each part with its checksum
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(damaged)


READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": tensor_shapes,
    ".json": _read_json,
    ".pt": _read_archive,
    ".pth": _read_archive,
    ".bin": _read_archive,
}


def changed_fields(checkpoint: Path, config: PreTrainedConfig) -> list[str]:
    """Describe the fields in which the configuration of a model differs from that of a checkpoint.

    Args:
        checkpoint (`Path`): a checkpoint with a `config.json`; without one nothing is compared.
        config (`PreTrainedConfig`): the configuration of the model that is to go on training.
    """
    if not (checkpoint / "config.json").is_file():
        return []
    stored = type(config).from_pretrained(checkpoint)
    return describe_changes(stored.to_dict(), config.to_dict(), FREE_FIELDS)


def describe_changes(
    before: dict[str, Any], after: dict[str, Any], ignored: Collection[str] = (), prefix: str = ""
) -> list[str]:
    """Describe every key that has another value, as `a.b is 4, was 2`.

    Args:
        before (`dict`): the old values, which may be nested.
        after (`dict`): the new ones.
        ignored (`Collection[str]`): keys that are left out, at any level.
        prefix (`str`): what precedes every key.
    """
    changes = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        if name in ignored or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changes += describe_changes(old, new, ignored, f"{prefix}{name}.")
        else:
            changes.append(f"{prefix}{name} is {new}, was {old}")
    return changes


def drop_old(run_dir: Path, limit: int | None, newest: Path, best: str | None, damaged: Collection[Path]) -> None:
    """Remove the oldest checkpoints over a limit; the one that was just written and the best one stay.

    Before those go damaged ones, and those of later steps, which an attempt left that the run did not go on from.

    A checkpoint is renamed before it is removed, so that a kill leaves none with half of its files.

    Args:
        run_dir (`Path`): the folder of the checkpoints.
        limit (`int`, *optional*): how many may stay.
        newest (`Path`): the one that was just written.
        best (`str`, *optional*): the best one.
        damaged (`Collection[Path]`): those that the run passed over when it resumed.
    """
    if limit is None or limit <= 0:
        return
    kept = {newest.name} | ({Path(best).name} if best else set())
    found = checkpoints_in(run_dir)
    # those before the newest are of an attempt that the run did not go on from
    left = {folder.name for folder in [*damaged, *found[: found.index(newest)]]}
    surplus = len(found) - max(limit, len(kept))
    oldest_first = list(reversed(found))
    for folder in sorted(oldest_first, key=lambda folder: folder.name not in left):
        if surplus > 0 and folder.name not in kept:
            dropped = scratch_path(folder)
            folder.rename(dropped)
            shutil.rmtree(dropped, ignore_errors=True)
            surplus -= 1
