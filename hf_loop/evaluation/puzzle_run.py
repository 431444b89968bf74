"""Measures the puzzle model of a run on the test puzzles of its recipe, and writes its card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM

from ..loading import load_pretrained
from ..trainer.data import load_training_data
from ..trainer.recipe import load_recipe
from ..trainer.run import RECIPE_COPY
from .puzzle_card import SEGMENTS, measure_puzzles, write_puzzle_card


# the token of a blank in grids of digits
BLANK = 1


def measure_puzzle_run(
    folder: str | Path,
    *,
    num_rows: int | None = None,
    segments: Sequence[int] = SEGMENTS,
    batch_size: int = 256,
    device: Any = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Measure the model in a run's folder, and write `puzzle_results.json`, a figure and `README.md` beside it.

    Args:
        folder (`str` or `Path`): the output folder of a run of a puzzle recipe, with the recipe's copy.
        num_rows (`int`, *optional*): test puzzles, by default as many as the recipe evaluates.
        segments (`Sequence[int]`): numbers of segments after which answers are scored.
        batch_size (`int`): puzzles in one forward pass.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): where to run the model.
        progress (`bool`, *optional*, defaults to `False`): whether to show progress bars.

    Returns:
        `dict[str, Any]`: what [`~hf_loop.evaluation.measure_puzzles`] returned.

    Raises:
        ValueError: if the folder is not that of a run, or the recipe has no test puzzles and `num_rows` is not given.
    """
    folder = Path(folder)
    if not (folder / RECIPE_COPY).is_file():
        raise ValueError(
            f"{folder} has no {RECIPE_COPY}, so its test puzzles are not known; give a folder that hf-loop train wrote"
        )
    recipe = load_recipe(folder / RECIPE_COPY)
    data = recipe.data
    kind = data.task_options.get("kind", "sudoku") if data.task == "puzzle_csv" else data.task
    # the test puzzles of files are those that are not trained on; tasks make them apart
    if data.task != "puzzle_csv":
        data.num_train_rows = 1
    data.num_eval_rows = data.num_eval_rows if num_rows is None else num_rows
    test = load_training_data(data, default_tokenizer=None, seed=recipe.training.seed).eval_dataset
    if test is None:
        raise ValueError(f"data.num_eval_rows in {folder / RECIPE_COPY} is 0: say how many test puzzles to make")
    model: Any = load_pretrained(AutoModelForMaskedLM, folder).to(device)
    results = measure_puzzles(
        model,
        test,
        blank=BLANK if kind == "sudoku" else None,
        segments=segments,
        batch_size=batch_size,
        progress=progress,
    )
    options = ", ".join(f"{name} {value}" for name, value in data.task_options.items())
    command = "hf-loop train recipe.yaml --card --set training.output_dir=FOLDER"
    write_puzzle_card(
        folder, results, data=f"task {data.task} ({options})", command=command, seed=recipe.training.seed
    )
    return results
