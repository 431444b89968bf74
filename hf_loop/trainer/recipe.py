"""Recipes: one YAML file that says which model is trained on which data and how.

A recipe has the sections `model`, `data` and `training`, and may have a section `debug` of overrides that make the run
tiny. Keys are checked when the file is read, so that a misspelt one is an error and not a silent default.
"""

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.constructor import ConstructorError

from .arguments import LoopTrainingArguments


SECTIONS = ("model", "data", "training")
Section = TypeVar("Section", "ModelSection", "DataSection", LoopTrainingArguments)


@dataclass
class ModelSection:
    """Section `model`: exactly one of `backbone` and `pretrained`, and how the layers are looped.

    Attributes:
        backbone: Config of a new backbone: `model_type` and the fields of that model's config. `vocab_size` and the
            special token ids come from the tokenizer where they are not given.
        pretrained: Folder or Hub name of a pretrained causal language model to loop; or of a looped one, which keeps
            its layout and goes on training.
        num_prelude_layers: Layers that run once, before the loop. `None` means none, or with `core_layers` those up
            to the core.
        num_coda_layers: Layers that run once, after the loop. `None` as above.
        core_layers: Of a pretrained model, the layers that loop: `FIRST-LAST`, counted from 0. Layers between a given
            prelude or coda and the core are dropped.
        num_loops: The depth that the saved model uses, and the mean of the training depth. `None` means 4, or a looped
            model's own.
        injection: How the prelude's output enters every loop.
        state_init: What the state starts from. `None` takes `"input"`, or with `pretrained` what keeps one loop equal
            to the pretrained model.
        loop_norm: The norm that closes every loop.
        loop_update: Whether a loop replaces the state or moves it by a part of the way.
        fold: Of a pretrained model, whether the core's layers are shared between the loops, each the `average` of
            those it stands for or the `first` of them.
        loop_lora_rank: Rank of the update that every loop adds to the core; 0 means none.
    """

    backbone: dict[str, Any] | None = None
    pretrained: str | None = None
    num_prelude_layers: int | None = None
    num_coda_layers: int | None = None
    core_layers: str | None = None
    num_loops: int | None = None
    injection: Literal["none", "add", "concat", "diagonal"] = "none"
    state_init: Literal["input", "zeros", "normal", "learned"] | None = None
    loop_norm: Literal["none", "own", "final"] = "none"
    loop_update: Literal["replace", "damped"] = "replace"
    fold: Literal["average", "first"] | None = None
    loop_lora_rank: int = 0

    def __post_init__(self) -> None:
        _require_one_of("model", self, ("backbone", "pretrained"))
        if self.backbone is not None and "model_type" not in self.backbone:
            raise ValueError("model.backbone must name its model_type, for example model_type: llama")
        for name in ("core_layers", "fold"):
            value = getattr(self, name)
            if self.backbone is not None and value is not None:
                raise ValueError(
                    f"model.{name} says what becomes of the layers of model.pretrained, got {value!r} for a new "
                    "backbone, whose layers between prelude and coda are the core"
                )


@dataclass
class DataSection:
    """Section `data`: exactly one of `task`, `files` and `dataset`.

    Attributes:
        task: Name of a diagnostic task of `hf_loop.tasks`; it brings its own tokenizer.
        task_options: Options of the task.
        num_train_rows: Rows of the task to generate for training.
        files: Local files, patterns such as `texts/*.txt`, or folders, relative to the current folder. All of one
            kind: `.txt` or no suffix (one text a file), `.jsonl` or `.json` (one object a text), or `.parquet`.
        dataset: Folder or Hub name of a dataset with text.
        dataset_config: Its configuration.
        split: Its split.
        text_column: The column of text of a dataset, of JSON or of Parquet files.
        streaming: Read the text while training instead of packing it before. The end of the text is followed by its
            start; `training.max_steps` says when the run ends.
        tokenizer: Folder or Hub name of the tokenizer, or `bytes` for one token per byte. `None` takes the one of
            `model.pretrained`.
        block_size: Tokens per training row; texts are joined by the end-of-text token and cut to this length.
        num_eval_rows: Rows held back for evaluation: the last ones, when streaming the first ones; for a task,
            generated apart from the training rows.
    """

    task: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    num_train_rows: int = 10_000
    files: list[str] | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    text_column: str = "text"
    streaming: bool = False
    tokenizer: str | None = None
    block_size: int = 1024
    num_eval_rows: int = 0

    def __post_init__(self) -> None:
        _require_one_of("data", self, ("task", "files", "dataset"))
        for name, low in (("num_train_rows", 1), ("block_size", 2), ("num_eval_rows", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"data.{name} must be at least {low}, got {getattr(self, name)}")
        if self.task is not None and self.tokenizer is not None:
            raise ValueError(f"data.tokenizer cannot be chosen for a task, got {self.tokenizer!r}")
        if self.task is not None and self.streaming:
            raise ValueError("data.streaming is for text, and the rows of a task are generated, got streaming=true")


@dataclass
class Recipe:
    """A recipe that was read and checked.

    Attributes:
        model: Section `model`.
        data: Section `data`.
        training: Section `training`, every field of [`LoopTrainingArguments`].
        output_dir: `training.output_dir`, which a recipe must give.
        source: The sections as they were read, overrides included; this is what a run saves beside its model.
    """

    model: ModelSection
    data: DataSection
    training: LoopTrainingArguments
    output_dir: str
    source: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        if self.training.distillation_weight > 0 and self.model.pretrained is None:
            raise ValueError(
                "training.distillation_weight needs model.pretrained, which is the teacher, "
                f"got training.distillation_weight={self.training.distillation_weight} and a new backbone"
            )
        if self.data.streaming and self.training.max_steps < 1:
            raise ValueError(
                "data.streaming=true needs training.max_steps, since a stream has no length, "
                f"got training.max_steps={self.training.max_steps}"
            )


def load_recipe(path: str | Path, overrides: Sequence[str] = (), debug: bool = False) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file.
        overrides: Strings `section.key=value`, applied last; the value is read as YAML, and a longer path such as
            `model.backbone.hidden_size=64` reaches into a mapping.
        debug: Whether to apply the overrides in the recipe's section `debug`.

    Raises:
        ValueError: In one line: the file is missing or no YAML, a key is not known (the nearest known one is named),
            or a value does not fit its field.
    """
    path = Path(path)
    sections = _read_yaml(path)
    try:
        check_keys("the recipe", sections, [*SECTIONS, "debug"])
        debug_overrides = sections.pop("debug", None) or {}
        if debug:
            if not debug_overrides:
                raise ValueError("the recipe has no section 'debug'")
            for key, value in debug_overrides.items():
                _override(sections, key, value)
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"an override must read section.key=value, got {override!r}")
            _override(sections, key.strip(), _parse_value(override, value))
        check_keys("the recipe", sections, SECTIONS)
        training = _build_section("training", LoopTrainingArguments, sections)
        if "output_dir" not in sections["training"] or training.output_dir is None:
            raise ValueError("training.output_dir must be given")
        return Recipe(
            model=_build_section("model", ModelSection, sections),
            data=_build_section("data", DataSection, sections),
            training=training,
            output_dir=training.output_dir,
            source=sections,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_keys(where: str, values: Iterable[str], known: Sequence[str]) -> None:
    """Refuses a key that is not known.

    Raises:
        ValueError: Names the key, where it stands, and the nearest known one.
    """
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            raise ValueError(f"unknown key '{key}' in {where}{hint}")


class _RecipeLoader(yaml.SafeLoader):
    """YAML as most people read it: `5e-4` is a number, `no` and `on` are words, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConstructorError(None, None, f"the key {key!r} is repeated", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBER_TAG, _BOOL_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"
_RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_NUMBER_TAG, _BOOL_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(_BOOL_TAG, re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_RecipeLoader.add_implicit_resolver(
    _NUMBER_TAG,
    re.compile(r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe")
    try:
        sections = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}: not valid YAML{f': {problem}' if problem else ''}{place}") from error
    if not isinstance(sections, dict):
        raise ValueError(f"{path}: a recipe is a mapping with the sections model, data and training")
    return sections


def _parse_value(override: str, value: str) -> Any:
    try:
        return yaml.load(value, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of the override {override!r} is not valid YAML") from error


def _override(sections: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    if not parents:
        raise ValueError(f"an override must name section.key, got {key!r}")
    mapping = sections
    for parent in parents:
        if mapping.get(parent) is None:
            mapping[parent] = {}
        mapping = mapping[parent]
        if not isinstance(mapping, dict):
            raise ValueError(f"the override {key!r} reaches into {parent!r}, which is no mapping")
    mapping[last] = value


def _build_section(name: str, section_class: type[Section], sections: dict[str, Any]) -> Section:
    values = sections.get(name)
    if not isinstance(values, dict):
        raise ValueError(f"section '{name}' must be a mapping, got {values!r}")
    known = [item.name for item in fields(section_class) if item.init]
    check_keys(f"section '{name}'", values, known)
    hints = get_type_hints(section_class)
    for key, value in values.items():
        if not _fits(value, bool | str if key == "resume_from_checkpoint" else hints[key]):
            raise ValueError(f"{name}.{key} must be {_readable(hints[key])}, got {value!r}")
    try:
        return section_class(**values)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(f"{name}.") else f"{name}: {message}") from error


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _readable(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")


def _require_one_of(section: str, values: Any, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(values, name) is not None]
    if len(given) != 1:
        choices = ", ".join(f"{section}.{name}" for name in names)
        raise ValueError(f"{section}: give exactly one of {choices}, got {', '.join(given) or 'none'}")
