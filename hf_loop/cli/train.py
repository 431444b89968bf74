"""`hf-loop train`: run a recipe."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from .. import register
from .options import Quiet
from .output import quiet_libraries
from .puzzles import measure_puzzles


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the recipe; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Run the recipe's tiny debug variant.")] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write the model card afterwards; measure a puzzle model for it.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train the model of a recipe and save it."""
    if quiet:
        quiet_libraries()

    from ..trainer.recipe import load_recipe

    overrides = list(overrides or [])
    if resume:
        overrides.append("training.resume_from_checkpoint=true")
    checked = load_recipe(recipe, overrides, debug)
    is_puzzle = checked.model.family == "puzzle"
    if card and is_puzzle and not checked.data.num_eval_rows:
        raise ValueError(f"--card: data.num_eval_rows of {recipe} is 0, so there are no test puzzles to measure")

    from accelerate import PartialState

    from ..trainer.run import run_recipe

    register()
    result = run_recipe(checked, quiet)
    if checked.training.process_index == 0:
        evaluation = "" if result.eval_loss is None else f", evaluation loss {result.eval_loss:.4f}"
        for name in ("exact_accuracy", "cell_accuracy"):
            if f"eval_{name}" in result.eval_metrics:
                evaluation += f", {name.replace('_', ' ')} {result.eval_metrics[f'eval_{name}']:.4f}"
        print(f"{result.num_parameters:,} parameters, training loss {result.train_loss:.4f}{evaluation}")
        print(result.output_dir)
        if card:
            _write_card(Path(result.output_dir), is_puzzle, quiet)
    # gloo's threads live as long as a model that uses the process group. A process that ends while they run may abort,
    # and a finished run would look like a failed one
    gc.collect()
    PartialState().destroy_process_group()


def _write_card(folder: Path, is_puzzle: bool, quiet: bool) -> None:
    from ..evaluation.hub_card import write_card

    if is_puzzle:
        measure_puzzles(folder, progress=not quiet)
    print(write_card(folder))
