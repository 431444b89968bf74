"""`hf-loop card`: write the model card of a folder."""

from pathlib import Path
from typing import Annotated

import typer

from ..paths import no_such
from .puzzles import measure_puzzles


def card(
    folder: Annotated[Path, typer.Argument(help="A model folder, with results.json if something was measured.")],
    repo_id: Annotated[str | None, typer.Option(help="The repository that the card will stand in.")] = None,
    license: Annotated[str | None, typer.Option(help="The licence of the weights, as the Hub spells it.")] = None,
    base_model: Annotated[str | None, typer.Option(help="The checkpoint that the model was made from.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure a puzzle model on its recipe's test puzzles first.")
    ] = False,
    num_examples: Annotated[
        int | None, typer.Option(min=1, help="With --measure: test puzzles.", show_default="the recipe's")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that hf-loop did not write.")
    ] = False,
) -> None:
    """Write the model card of a folder."""
    if not folder.is_dir():
        raise ValueError(no_such("folder", folder))

    from ..evaluation.card_template import CARD_FILE, CARD_MARKER
    from ..evaluation.hub_card import write_card
    from ..evaluation.model_card import family_config
    from ..files import read_text
    from ..loading import check_model_folder

    path = folder / CARD_FILE
    if path.is_file() and CARD_MARKER not in read_text(path) and not overwrite:
        raise ValueError(f"{path} was not written by hf-loop; give --overwrite to replace it")
    is_puzzle = family_config(folder).kind == "puzzle"
    if num_examples is not None and not measure:
        raise ValueError("--num-examples: give --measure with it")
    if measure and not is_puzzle:
        raise ValueError(f"--measure: {folder} holds no puzzle model; measure it with hf-loop sweep")
    # a card describes weights; a folder may have none yet
    if any(folder.glob("*.safetensors")):
        check_model_folder(folder)
    if measure:
        measure_puzzles(folder, num_examples)
    print(write_card(folder, repo_id, license=license, base_model=base_model))
