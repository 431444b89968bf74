"""`hf-loop card`: write the model card of a folder."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    folder: Annotated[Path, typer.Argument(help="A model folder, with results.json if something was measured.")],
    repo_id: Annotated[str | None, typer.Option(help="The repository that the card will stand in.")] = None,
    license: Annotated[str | None, typer.Option(help="The licence of the weights, as the Hub spells it.")] = None,
    base_model: Annotated[str | None, typer.Option(help="The checkpoint that the model was made from.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that hf-loop did not write.")
    ] = False,
) -> None:
    """Write the model card of a folder."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")

    from ..evaluation.model_card import CARD_FILE, CARD_MARKER, ModelCardFacts, write_model_card
    from ..loading import check_model_folder

    path = folder / CARD_FILE
    if path.is_file() and CARD_MARKER not in path.read_text(encoding="utf-8") and not overwrite:
        raise ValueError(f"{path} was not written by hf-loop; give --overwrite to replace it.")
    facts = ModelCardFacts.from_folder(folder, repo_id)
    # a folder may have no weights yet
    if facts.num_parameters is not None:
        check_model_folder(folder)
    facts.results.license = license or facts.results.license
    facts.results.base_model = base_model or facts.results.base_model
    print(write_model_card(folder, facts))
