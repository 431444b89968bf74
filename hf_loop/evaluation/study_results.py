"""What the runs of a study came to, read from their folders."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..field_values import build
from ..files import fault_named, read_json
from .results import package_versions
from .scan_results import check_same_settings
from .study import RunKey, Study
from .study_measure import Cell
from .study_plan import Plan


MEASURED_FILE = "measured.json"
# why a run that was begun is not measured
FAILED_FILE = "failed.json"
# training rows that are looked at where more cannot be known of them
NUM_LOOKED_AT = 2048
# the files of a model folder that its answers depend on
DIGESTED = ("*.safetensors", "pytorch_model*.bin", "config.json", "tokenizer*")
# options that set the hardest row of training, where a task has several of them the first
BOUNDS = ("difficulty", "num_moves", "num_swaps", "num_steps", "max_hops", "max_blocks")


@dataclass
class MeasuredRun:
    """One run of a study.

    Args:
        settings (`dict`): what its numbers depend on.
        trained_loops (`int`, *optional*): loops of the model's configuration, at which it was trained.
        num_parameters (`int`): parameters of the model.
        num_steps (`int`): training steps.
        training_flops (`float`): floating-point operations of the training.
        seconds (`float`): processor seconds of the training, since it was last resumed.
        guessing (`dict[int, float]`): by difficulty, the share of rows with the most frequent answer.
        cells (`list[Cell]`): the answers.
        state_growth (`list[float]`): root mean square of the state after every loop.
        controls (`dict`, *optional*): what [`~DepthControls.to_dict`] returns.
        versions (`dict[str, str]`): package versions; by default those of the running process.
    """

    settings: dict[str, Any]
    trained_loops: int | None
    num_parameters: int
    num_steps: int
    training_flops: float
    seconds: float
    guessing: dict[int, float]
    cells: list[Cell]
    state_growth: list[float] = field(default_factory=list)
    controls: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=package_versions)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as lists and numbers."""
        return asdict(self)

    def cells_at(
        self, loops: int | None, difficulties: Iterable[int] | None = None, votes: int | None = None
    ) -> list[Cell]:
        """Return the answers to the rows of some difficulties.

        Args:
            loops (`int`, *optional*): the loop count; `None` of a model without loops.
            difficulties (`Iterable[int]`, *optional*): the difficulties, by default all.
            votes (`int`, *optional*): the number of votes, by default the smallest.

        Raises:
            ValueError: if nothing was measured there.
        """
        votes = min(cell.votes for cell in self.cells) if votes is None else votes
        wanted = None if difficulties is None else set(difficulties)
        cells = [
            cell
            for cell in self.cells
            if cell.loops == loops and cell.votes == votes and (wanted is None or cell.difficulty in wanted)
        ]
        if not cells:
            raise ValueError(f"nothing was measured at {loops} loops with {votes} votes, difficulties {wanted}")
        return cells

    def accuracy(self, *at: Any, **also: Any) -> float:
        """Return the share of right answers over all rows, with the arguments of [`~MeasuredRun.cells_at`]."""
        cells = self.cells_at(*at, **also)
        return sum(cell.num_right for cell in cells) / sum(cell.num_rows for cell in cells)

    @property
    def loops(self) -> list[int | None]:
        """The loop counts that were measured, ascending."""
        return sorted({cell.loops for cell in self.cells}, key=lambda count: count or 0)

    @property
    def reading_loops(self) -> int | None:
        """The measured loop count nearest to the trained one."""
        if self.trained_loops is None:
            return None
        trained = self.trained_loops
        return min((count for count in self.loops if count), key=lambda count: (abs(count - trained), count))


def run_settings(study: Study, key: RunKey, plan: Plan) -> dict[str, Any]:
    """Return what the numbers of a run depend on, with the keys of nested mappings joined by dots."""
    task, arm = study.tasks[key.task], study.arms[key.arm]
    measured = {
        "test_options": task.test_options,
        "test_split": task.test_split,
        "num_test_rows": task.num_test_rows,
        "loops": arm.loops,
        "votes": arm.votes,
        "controls": arm.controls,
    }
    # only where there are any, so that runs of before still count
    if arm.checkpoint is not None and task.num_examples:
        measured["num_examples"] = task.num_examples
    if arm.checkpoint is not None:
        measured["checkpoint"] = checkpoint_identity(arm.checkpoint)
    return {**key._asdict(), "num_steps": plan.num_steps} | flat_settings(study.sections(key.task, key.arm) | measured)


def checkpoint_identity(checkpoint: str) -> str:
    """Return what tells a checkpoint from others: of files a digest of weights, configuration and tokenizer, which
    does not change when they are moved, and of a repository its name."""
    path = Path(checkpoint)
    if not path.exists():
        return checkpoint
    files = [path] if path.is_file() else sorted(file for names in DIGESTED for file in path.glob(names))
    # the times only tell whether a file was digested already
    return _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings with the keys of nested mappings joined by dots."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        inner = flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        result |= inner
    return result


def check_all_settings(stored: dict[str, Any], settings: dict[str, Any], path: Path) -> None:
    """Check that what is stored at `path` was made with `settings`, and with no others beside them.

    Raises:
        ValueError: if not; the message names what differs.
    """
    check_same_settings(stored, dict.fromkeys(stored) | settings, path)


def read_run(folder: Path, settings: dict[str, Any] | None = None) -> MeasuredRun | None:
    """Read a run, `None` if it was not measured yet.

    Args:
        folder (`Path`): the folder of the run.
        settings (`dict`, *optional*): the settings that it must have been measured under.

    Raises:
        ValueError: if the file is damaged, or the settings are others.
    """
    path = folder / MEASURED_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    with fault_named(path):
        data["cells"] = [build(Cell, cell, "a cell") for cell in data["cells"]]
        # JSON has no integers as keys
        data["guessing"] = {int(difficulty): share for difficulty, share in data["guessing"].items()}
        run = build(MeasuredRun, data, "the run")
    if settings is not None:
        check_all_settings(run.settings, settings, path)
    return run


class StudyRuns:
    """The runs of a study that were measured.

    Args:
        study (`Study`): the study.
        runs (`dict[tuple[str, str, int], MeasuredRun]`): the runs by task, arm and seed.
        failures (`dict[tuple[str, str, int], str]`, *optional*): why others failed.
    """

    def __init__(
        self,
        study: Study,
        runs: dict[tuple[str, str, int], MeasuredRun],
        failures: dict[tuple[str, str, int], str] | None = None,
    ) -> None:
        self.study = study
        self.runs = runs
        self.failures = failures or {}

    @classmethod
    def load(cls, study: Study, folder: Path) -> "StudyRuns":
        """Read what was measured so far.

        Raises:
            ValueError: if a file is damaged.
        """
        found = {key: read_run(key.folder(folder)) for key in study.run_keys()}
        notes = {key: key.folder(folder) / FAILED_FILE for key, run in found.items() if run is None}
        failures = {tuple(key): str(read_json(note).get("error")) for key, note in notes.items() if note.is_file()}
        return cls(study, {tuple(key): run for key, run in found.items() if run is not None}, failures)

    @property
    def num_missing(self) -> int:
        """How many runs were not measured yet."""
        return len(self.study.run_keys()) - len(self.runs)

    def of(self, task: str, arm: str) -> list[MeasuredRun]:
        """Return the runs of an arm on a task, by seed."""
        return [self.runs[task, arm, seed] for seed in self.study.seeds if (task, arm, seed) in self.runs]

    def pairs(self, task: str, arm: str, other: str) -> list[tuple[MeasuredRun, MeasuredRun]]:
        """Return the runs of two arms on a task with the same seed."""
        keys = [((task, arm, seed), (task, other, seed)) for seed in self.study.seeds]
        return [(self.runs[one], self.runs[two]) for one, two in keys if one in self.runs and two in self.runs]

    def difficulties(self, task: str) -> tuple[list[int], list[int]]:
        """Return the difficulties of a task that were measured: up to the hardest of training, and beyond."""
        runs = [run for arm in self.study.arms for run in self.of(task, arm)]
        measured = sorted({cell.difficulty for run in runs for cell in run.cells})
        bound = trained_difficulty(self.study, task)
        if bound is None:
            return measured, []
        return [value for value in measured if value <= bound], [value for value in measured if value > bound]


def trained_difficulty(study: Study, task: str) -> int | None:
    """Return the hardest difficulty of the training rows of a task: what its options or their defaults say, or the
    hardest of many rows where they say nothing. `None` of a task without rows for a study."""
    section = study.tasks[task]
    given = study.base.get("data", {}).get("task_options", {}) | section.task_options
    return _hardest(section.task or task, json.dumps(given, sort_keys=True))


@cache
def _hardest(task: str, given: str) -> int | None:
    from ..trainer.data import TASKS, make_task_rows

    if task not in TASKS:
        return None
    options = {name: parameter.default for name, parameter in inspect.signature(TASKS[task]).parameters.items()}
    options |= json.loads(given)
    bound = next((options[name] for name in BOUNDS if name in options), None)
    if isinstance(bound, int):
        return bound
    try:
        # rows of boards are none of a study, and many of them take long
        if "prompt" not in make_task_rows(task, 1, 1, 0, json.loads(given))[0]["train"].column_names:
            return None
        return max(make_task_rows(task, NUM_LOOKED_AT, 1, 0, json.loads(given))[0]["train"]["difficulty"])
    except (ValueError, KeyError):
        return None
