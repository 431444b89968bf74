"""Recipes: one YAML file that says which model is trained on which data and how.

A recipe has the sections `model`, `data` and `training`, and may have a section `debug` of overrides that make the run
tiny. Keys are checked when the file is read, so that a misspelt one is an error and not a silent default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..field_values import check_names, check_types, field_types, fits
from ..models import FAMILIES
from .arguments import LoopTrainingArguments, SafeTrainingArguments
from .deep_supervision import DeepSupervisionArguments
from .ranges import check_ranges
from .recipe_yaml import read_sections
from .sections import PUZZLE_TASKS, DataSection, ModelSection, check_model_keys


SECTIONS = ("model", "data", "training")


@dataclass
class Recipe:
    """A recipe that was read and checked.

    Args:
        model (`ModelSection`): section `model`.
        data (`DataSection`): section `data`.
        training (`TrainingArguments`): section `training`, of the class that [`arguments_class`] says.
        output_dir (`str`): `training.output_dir`, which a recipe must give.
        source (`dict`): the sections as they were written, overrides included and access tokens left out; what a run
            saves beside its model.

    Raises:
        ValueError: sections do not go together; names their keys.
    """

    model: ModelSection
    data: DataSection
    training: TrainingArguments
    output_dir: str
    source: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        distillation_weight = getattr(self.training, "distillation_weight", 0.0)
        if distillation_weight > 0 and self.model.pretrained is None:
            raise ValueError(
                "training.distillation_weight needs model.pretrained, which is the teacher, "
                f"got training.distillation_weight={distillation_weight} and a new backbone"
            )
        if self.data.repeated_segment and self.model.family != "feedback":
            raise ValueError(
                "data.repeated_segment needs model.family=feedback, whose loss has a weight for every token, "
                f"got {self.data.repeated_segment} and a {self.model.family} model"
            )
        is_puzzle = self.data.task in PUZZLE_TASKS
        if is_puzzle != (self.model.record.causal is None):
            raise ValueError(
                f"model.family=puzzle and the tasks {', '.join(PUZZLE_TASKS)} go together, got "
                f"{self.model.family} and data.task={self.data.task}"
            )
        if self.data.streaming and self.training.max_steps < 1:
            raise ValueError(
                "data.streaming=true needs training.max_steps, since a stream has no length, "
                f"got training.max_steps={self.training.max_steps}"
            )


def load_recipe(path: str | Path, overrides: Sequence[str] = (), debug: bool = False) -> Recipe:
    """Read a recipe.

    Args:
        path (`str` or `Path`): the YAML file.
        overrides (`Sequence[str]`, *optional*): strings `section.key=value`, applied last; the value is read as YAML,
            and a longer path such as `model.backbone.hidden_size=64` reaches into a mapping.
        debug (`bool`, *optional*, defaults to `False`): whether to apply the overrides in the recipe's section
            `debug`.

    Raises:
        ValueError: in one line: the file is missing or no YAML, a key is not known (the nearest known one is named),
            or a value does not fit its field.
    """
    path = Path(path)
    try:
        return make_recipe(*read_sections(path, overrides, debug))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def make_recipe(sections: dict[str, Any], source: dict[str, Any]) -> Recipe:
    """Make a recipe of its sections.

    Args:
        sections (`dict`): the sections.
        source (`dict`): the sections to save beside the model.

    Raises:
        ValueError: a key is not known, or a value does not fit its field.
    """
    check_names(sections, SECTIONS, "the recipe")
    for name in SECTIONS:
        if not isinstance(sections.get(name), dict):
            raise ValueError(f"section '{name}' must be a mapping, got {sections.get(name)!r}")
    family = sections["model"].get("family", "looped")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"model.family must be one of {', '.join(FAMILIES)}, got {family!r}")
    check_model_keys(family, sections["model"])
    training = _build_section("training", arguments_class(family), sections)
    if "output_dir" not in sections["training"] or training.output_dir is None:
        raise ValueError("training.output_dir must be given")
    return Recipe(
        model=_build_section("model", ModelSection, sections),
        data=_build_section("data", DataSection, sections),
        training=training,
        output_dir=training.output_dir,
        source=source,
    )


def arguments_class(family: str) -> type[TrainingArguments]:
    """The class of section `training`, by the trainer that trains models of the family.

    Args:
        family (`str`): the name of the family.
    """
    record = FAMILIES[family]
    if record.causal is None:
        return DeepSupervisionArguments
    return LoopTrainingArguments if record.loops else SafeTrainingArguments


def _build_section(name: str, section_class: type[Any], sections: dict[str, Any]) -> Any:
    values, types = sections[name], field_types(section_class)
    check_names(values, types, f"section '{name}'")
    if "resume_from_checkpoint" in types:
        types["resume_from_checkpoint"] = bool | str | None
    values = check_types({key: _word(value, types[key]) for key, value in values.items()}, types, name + ".{}")
    if name == "training":
        check_ranges(name, values)
    try:
        return section_class(**values)
    # transformers' arguments fail in many ways where a package is missing or a word is not known
    except Exception as error:
        message = " ".join(str(error).split())
        if not message.startswith(f"{name}."):
            key = _key_to_blame(section_class, values)
            message = f"{name}: {message}" if key is None else f"{name}.{key}={values[key]!r}: {message}"
        raise ValueError(message) from error


def _key_to_blame(section_class: type[Any], values: dict[str, Any]) -> str | None:
    """Return the key without which the section could be built."""
    for key in values:
        try:
            section_class(**{name: value for name, value in values.items() if name != key})
        except Exception:
            continue
        return key
    return None


def _word(value: Any, hint: Any) -> Any:
    """`no` where YAML has read it as false and the field is a word, as in `eval_strategy: no`."""
    return "no" if value is False and not fits(value, hint) and fits("no", hint) else value
