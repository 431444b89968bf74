"""Measures a puzzle model, stores the results beside it, and writes its model card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCardData
from tqdm.auto import tqdm

from ..files import read_json, write_text
from ..models import family_of
from ..models.puzzle_inputs import pad_puzzles
from ..models.puzzle_loss import IGNORE_INDEX
from ..weight_files import count_stored_parameters
from .card_template import CARD_FILE, FIGURES_FOLDER, render_card
from .model_card import family_config
from .puzzle_plots import plot_puzzle_results
from .puzzles import (
    SegmentRecord,
    failure_checks,
    halting_quality,
    record_segments,
    segment_accuracy,
    with_one_blank,
)
from .results import package_versions


PUZZLE_RESULTS_FILE = "puzzle_results.json"
FIGURE_FILE = f"{FIGURES_FOLDER}/accuracy_over_segments.png"
SEGMENTS = (1, 2, 4, 8, 16, 32)
# the columns of the tasks that say how difficult a puzzle is
DIFFICULTIES = ("blanks", "dead_ends", "length", "rating")


def measure_puzzles(
    model: Any,
    rows: Dataset,
    *,
    blank: int | None = None,
    segments: Sequence[int] = SEGMENTS,
    batch_size: int = 256,
    progress: bool = False,
) -> dict[str, Any]:
    """Run all measurements of [`~hf_loop.evaluation.puzzles`] on test puzzles.

    Args:
        model (`Any`): a [`HierarchicalForPuzzle`].
        rows (`Dataset`): rows with `input_ids` and `labels`, and columns of difficulty as the tasks have them.
        blank (`int`, *optional*): the token of a blank, to measure solutions with one blank too; `None` leaves
            that out.
        segments (`Sequence[int]`): numbers of segments after which answers are scored.
        batch_size (`int`): rows in one forward pass.
        progress (`bool`): whether to show a progress bar.

    Returns:
        `dict[str, Any]`: `accuracy` (by number of segments, exact accuracy and cell accuracy), `failures`,
        `one_blank_accuracy` (exact) and `halting` (by column of difficulty, empty for a model that does not halt), as
        JSON holds them.
    """
    max_segments = model.config.max_segments
    input_ids, mask = pad_puzzles(rows["input_ids"])
    labels, _ = pad_puzzles(rows["labels"], IGNORE_INDEX)
    longest = max(*segments, max_segments)
    record = _record(model, input_ids, labels, mask, longest, batch_size, "puzzles" if progress else None)
    halting = {}
    if model.config.halting != "none":
        for name in [name for name in DIFFICULTIES if name in rows.column_names]:
            halting[name] = halting_quality(record, rows[name], max_segments).to_dict()
    one_blank = None
    if blank is not None:
        easy = with_one_blank(input_ids, labels, blank)
        easy_mask = None if mask is None else mask[(input_ids == blank).any(1)]
        easy_record = _record(model, *easy, easy_mask, max_segments, batch_size, "one blank" if progress else None)
        one_blank = segment_accuracy(easy_record, [max_segments])[max_segments][0]
    measured = {
        "num_rows": len(rows),
        "accuracy": {str(count): list(both) for count, both in segment_accuracy(record, segments).items()},
        "failures": failure_checks(record).to_dict(),
        "one_blank_accuracy": one_blank,
        "halting": halting,
    }
    # a fresh measurement must equal one read from a file: JSON turns tuples into lists
    return json.loads(json.dumps(measured))


def _record(
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    num_segments: int,
    batch_size: int,
    bar: str | None,
) -> SegmentRecord:
    """Record the segments of all puzzles, with a progress bar of this name."""
    masks = [None] * len(input_ids) if mask is None else mask.split(batch_size)
    batches = list(zip(input_ids.split(batch_size), labels.split(batch_size), masks))
    records = [
        record_segments(model, ids, answers, num_segments, batch_size=batch_size, attention_mask=part)
        for ids, answers, part in tqdm(batches, desc=bar, disable=bar is None)
    ]
    joined: dict[str, Any] = {}
    for name in vars(records[0]):
        parts = [getattr(record, name) for record in records]
        joined[name] = None if parts[0] is None else torch.cat(parts)
    return SegmentRecord(**joined)


def write_puzzle_card(
    folder: str | Path,
    results: dict[str, Any],
    *,
    data: str,
    command: str | None = None,
    seed: int | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write `puzzle_results.json`, a figure and `README.md` into the folder of a puzzle model.

    Args:
        folder (`str` or `Path`): the folder that `save_pretrained` wrote.
        results (`dict[str, Any]`): what [`measure_puzzles`] returned.
        data (`str`): the test puzzles, in words.
        command (`str`, *optional*): the command that trained the model.
        seed (`int`, *optional*): its seed.
        notes (`Sequence[str]`): further sentences for the card's limits.

    Returns:
        `Path`: the card's path.

    Raises:
        ValueError: if the folder holds no puzzle model.
    """
    folder = Path(folder)
    _puzzle_config(folder)
    stored = {
        "results": results, "data": data, "command": command, "seed": seed, "notes": list(notes),
        "versions": package_versions(),
    }  # fmt: skip
    write_text(folder / PUZZLE_RESULTS_FILE, json.dumps(stored, indent=2, allow_nan=False) + "\n")
    return write_puzzle_card_again(folder, folder.resolve().name)


def write_puzzle_card_again(
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    tags: Sequence[str] = (),
    training_summary: str | None = None,
) -> Path:
    """Write the card of a puzzle model, with the measurements in `puzzle_results.json` where there are any.

    Args:
        folder (`str` or `Path`): the folder that `save_pretrained` wrote.
        repo_id (`str`): the repository that the card will stand in.
        license (`str`, *optional*): the licence of the weights, as the Hub spells it.
        base_model (`str`, *optional*): the checkpoint that the model came from.
        tags (`Sequence[str]`): tags for the Hub, besides those of every puzzle model.
        training_summary (`str`, *optional*): hyperparameters and losses, as markdown.

    Returns:
        `Path`: the card's path.

    Raises:
        ValueError: if the folder holds no puzzle model.
    """
    folder = Path(folder)
    config = _puzzle_config(folder)
    stored: dict[str, Any] = {"results": None, "command": None, "seed": None, "notes": []}
    stored["versions"] = package_versions()
    if (folder / PUZZLE_RESULTS_FILE).is_file():
        stored |= read_json(folder / PUZZLE_RESULTS_FILE)
        (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
        plot_puzzle_results(stored["results"], folder / FIGURE_FILE, max_segments=config.max_segments)
    family: Any = family_of(config)
    known = ["hf_loop", *family.classes[family.loader].family_tags, "puzzles"]
    card_data = ModelCardData(
        library_name="transformers",
        license=license,
        base_model=base_model,
        tags=[*known, *(tag for tag in tags if tag not in known)],
    )
    text = render_card(
        "puzzle_template.md",
        card_data,
        repo_id=repo_id,
        name=repo_id.split("/")[-1],
        config=config,
        fields={name: getattr(config, name) for name in family.own_fields},
        num_parameters=count_stored_parameters(folder),
        has_remote_code="auto_map" in read_json(folder / "config.json"),
        license=license,
        training_summary=training_summary,
        figure=FIGURE_FILE,
        **stored,
    )
    write_text(folder / CARD_FILE, text)
    return folder / CARD_FILE


def _puzzle_config(folder: Path) -> Any:
    config = family_config(folder)
    if not (config.architectures or [""])[0].endswith("ForPuzzle"):
        raise ValueError(f"{folder} holds {config.architectures}, and no puzzle model")
    return config
