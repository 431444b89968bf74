"""A study: tasks x arms x seeds from one YAML file, each of them a run of a recipe.

    title: Loops against layers
    question: Does a loop do more than a layer that runs once?
    seeds: [0, 1, 2]
    reference: looped
    base:                       # the sections `model`, `data` and `training` of a recipe, which all runs share
      model: {family: looped, backbone: {model_type: llama, hidden_size: 64, num_hidden_layers: 1}}
      training: {max_steps: 600, per_device_train_batch_size: 128, learning_rate: 3e-3}
    tasks:
      shell_game: {task_options: {num_swaps: 8}}
    arms:
      looped: {model: {config: {num_loops: 6}}, loops: [1, 2, 4, 6, 12]}
      deep: {model: {backbone: {num_hidden_layers: 6}}}

What a task or an arm says is laid over the base, mapping by mapping; the arm has the last word. A backbone of another
`model_type` replaces the one below, and `null` takes a key away.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..field_values import build, check_names
from ..models.checks import whole_number
from ..trainer.recipe_yaml import read_sections
from .curves import check_loops


SECTIONS = ("model", "data", "training")
RUNS_FOLDER = "runs"


class RunKey(NamedTuple):
    """Which run of a study: an arm on a task with a seed."""

    task: str
    arm: str
    seed: int

    def folder(self, study_folder: Path) -> Path:
        """Return the folder of the run, which is the folder of its model."""
        return study_folder / RUNS_FOLDER / self.task / self.arm / f"seed_{self.seed}"


@dataclass
class TaskSection:
    """One task of a study.

    Args:
        task (`str`, *optional*): name of the task of `hf_loop.tasks`; by default the section's own name.
        title (`str`, *optional*): the name in tables and figures, by default the section's.
        task_options (`dict`): options of the task in training.
        test_options (`dict`): options laid over them for the rows to measure, such as `test_difficulties`.
        test_split (`str`): the split to measure.
        num_test_rows (`int`): rows to measure.
        num_examples (`int`): solved rows of the training split that stand before every prompt of a checkpoint, which
            was not trained on the task.
        model (`dict`): keys of section `model` for this task.
        training (`dict`): keys of section `training` for this task.
        expected (`str`, *optional*): what theory or other work leads one to expect, in a sentence of the report.
    """

    task: str | None = None
    title: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    test_options: dict[str, Any] = field(default_factory=dict)
    test_split: str = "test"
    num_test_rows: int = 512
    num_examples: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    expected: str | None = None

    def __post_init__(self) -> None:
        if self.num_test_rows < 1:
            raise ValueError(f"num_test_rows must be at least 1, got {self.num_test_rows}")
        if self.num_examples < 0:
            raise ValueError(f"num_examples must not be negative, got {self.num_examples}")


@dataclass
class ArmSection:
    """One kind of model, or way to train it, of a study.

    Args:
        title (`str`, *optional*): the name in tables and figures, by default the section's.
        model (`dict`): keys of section `model`.
        training (`dict`): keys of section `training`.
        steps (`str`): `"same"`: as many steps as the task says; `"equal_compute"`: as many as cost the training
            compute of the study's reference arm.
        checkpoint (`str`, *optional*): a model folder, or a repository on the Hub, that is measured as it is and not
            trained: a recurrent model with its tokenizer. It has one run, whatever the seeds.
        loops (`list[int]`, *optional*): the loop counts to measure at, by default the model's own.
        thoughts (`bool`): whether the intermediate steps stand between prompt and answer (a chain of thought), which
            the model then writes before it answers.
        votes (`list[int]`): numbers of sampled answers of which the most frequent counts; 1 is the most likely answer.
        controls (`bool`): whether to tell apart what is lost with fewer loops and what the readout does not read, see
            [`~hf_loop.evaluation.depth_controls`].
    """

    title: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    steps: Literal["same", "equal_compute"] = "same"
    checkpoint: str | None = None
    loops: list[int] | None = None
    thoughts: bool = False
    votes: list[int] = field(default_factory=lambda: [1])
    controls: bool = False

    def __post_init__(self) -> None:
        if self.loops is not None:
            self.loops = sorted(check_loops(self.loops))
        if not self.votes or any(count < 1 for count in self.votes):
            raise ValueError(f"votes must hold integers of at least 1, got {self.votes}")
        self.votes = sorted(set(self.votes))
        if self.checkpoint is not None and (self.model or self.training or self.steps != "same"):
            raise ValueError(
                f"a checkpoint is not trained: leave out model, training and steps beside {self.checkpoint}"
            )


@dataclass
class Study:
    """A study that was read and checked.

    Args:
        title (`str`): the heading of its report.
        question (`str`): what it asks.
        tasks (`dict[str, TaskSection]`): the tasks by name.
        arms (`dict[str, ArmSection]`): the arms by name.
        reference (`str`, *optional*): the arm that the others are compared with, by default the first. It is a
            checkpoint only if all arms are.
        seeds (`list[int]`): each seed is one run of every arm on every task; it draws weights, rows and depths.
        base (`dict`): sections of a recipe that all runs share.
        limits (`list[str]`): sentences on what the study cannot show.
        source (`dict`): the file as it was read.

    Raises:
        ValueError: if something is missing, misspelt or of another type; the message names it.
    """

    title: str
    question: str
    tasks: dict[str, TaskSection]
    arms: dict[str, ArmSection]
    reference: str | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    base: dict[str, Any] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, items in (("tasks", self.tasks), ("arms", self.arms), ("seeds", self.seeds)):
            if not items:
                raise ValueError(f"{name} must not be empty")
        if len(set(self.seeds)) != len(self.seeds) or any(whole_number(seed) is None for seed in self.seeds):
            raise ValueError(f"seeds must be distinct integers, got {self.seeds}")
        if self.reference is None:
            self.reference = next(iter(self.arms))
        check_names([self.reference], self.arms, "reference", "arm")
        trained = [arm for arm in self.arms.values() if arm.checkpoint is None]
        if self.arms[self.reference].checkpoint is not None and trained:
            raise ValueError(f"reference must be an arm that is trained, got {self.reference}, a checkpoint")
        check_names(self.base, SECTIONS, "base")

    @property
    def others(self) -> list[str]:
        """The arms that are compared with the reference."""
        return [arm for arm in self.arms if arm != self.reference]

    def run_keys(self) -> list[RunKey]:
        """List all runs."""
        return [
            RunKey(task, arm, seed)
            for seed in self.seeds
            for task in self.tasks
            for arm, section in self.arms.items()
            if section.checkpoint is None or seed == self.seeds[0]
        ]

    def title_of(self, name: str) -> str:
        """Return the title of an arm or a task."""
        section = self.arms[name] if name in self.arms else self.tasks[name]
        return section.title or name.replace("_", " ")

    def sections(self, task: str, arm: str) -> dict[str, dict[str, Any]]:
        """Return the sections of the recipe of an arm on a task, still without seed, rows and output folder."""
        task_section, arm_section = self.tasks[task], self.arms[arm]
        data = {"task": task_section.task or task, "task_options": task_section.task_options}
        if arm_section.thoughts:
            data["thoughts"] = True
        layers = (
            self.base,
            {"model": task_section.model, "data": data, "training": task_section.training},
            {"model": arm_section.model, "training": arm_section.training},
        )
        merged: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        for layer in layers:
            merged = laid_over(merged, layer)
        return merged


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another: mappings in both are laid over each other, everything else is replaced, and so is
    a mapping of another `model_type`, whose fields mean nothing to the new one. `None` takes a key away."""
    if "model_type" in below and above.get("model_type", below["model_type"]) != below["model_type"]:
        return dict(above)
    result = dict(below)
    for name, value in above.items():
        is_mapping = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = laid_over(result[name], value) if is_mapping else value
    return {name: value for name, value in result.items() if value is not None}


def load_study(path: str | Path, overrides: Sequence[str] = (), debug: bool = False) -> Study:
    """Read a study.

    Args:
        path (`str` or `Path`): the YAML file, or a study's folder, which has a copy of it.
        overrides (`Sequence[str]`, *optional*): strings such as `base.training.max_steps=100`, applied last.
        debug (`bool`, *optional*, defaults to `False`): whether to apply the overrides in the file's section `debug`.

    Raises:
        ValueError: in one line, naming the file and the key.
    """
    path = Path(path)
    try:
        sections, _ = read_sections(path, overrides, debug)
        return make_study(sections)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def make_study(sections: Mapping[str, Any]) -> Study:
    """Make a study of a mapping, as its file holds it.

    Raises:
        ValueError: if a key is unknown, or a value does not fit.
    """
    values = {name: value for name, value in sections.items() if name != "source"}
    for name, section_class in (("tasks", TaskSection), ("arms", ArmSection)):
        items = values.get(name)
        if not isinstance(items, Mapping):
            raise ValueError(f"'{name}' must be a mapping from names to sections, got {items!r}")
        values[name] = {key: build(section_class, item or {}, f"{name}.{key}") for key, item in items.items()}
    return build(Study, values | {"source": json.loads(json.dumps(sections))}, "the study")
