"""What a study's folder holds of runs that were begun and are not measured: their recipes, and why they failed."""

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..files import fault_named, read_text, write_text
from ..trainer.recipe import Recipe
from .study_results import FAILED_FILE, check_all_settings, flat_settings


def check_begun(recipe: Recipe, folder: Path) -> None:
    """Refuse to go on with a run that was begun, or trained, with another recipe.

    Args:
        recipe (`Recipe`): the recipe of the run.
        folder (`Path`): its folder, which may hold a model or checkpoints.

    Raises:
        ValueError: the message names the file, and what differs.
    """
    from ..trainer.run import RECIPE_COPY

    for copy in (folder / RECIPE_COPY, *sorted(folder.glob(f"checkpoint-*/{RECIPE_COPY}"))):
        if copy.is_file():
            with fault_named(copy):
                stored = _settings(yaml.safe_load(read_text(copy)))
            check_all_settings(stored, _settings(recipe.source), copy)


def _settings(source: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that decide what is trained."""
    from ..trainer.run import FREE_ARGUMENTS

    free = tuple(f"training.{name}" for name in FREE_ARGUMENTS)
    return {name: value for name, value in flat_settings(source).items() if not name.startswith(free)}


def note_failure(folder: Path, error: Exception) -> str:
    """Write down why a run failed, for the report, and return it as one line."""
    reason = " ".join(str(error).split())
    if not isinstance(error, ValueError | OSError):
        reason = f"{type(error).__name__}: {reason}"
    folder.mkdir(parents=True, exist_ok=True)
    note = {"error": reason, "traceback": traceback.format_exception(error)}
    write_text(folder / FAILED_FILE, json.dumps(note, indent=1) + "\n")
    return reason
