"""`hf-loop inspect`: look inside the loops of a model at one prompt."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output_folders import folder_lock
from ..paths import name_of
from .load import LayerRange, check_language_model, default_device, load_config, load_model, load_tokenizer
from .options import Coda, Core, Prelude, Quiet, check_text
from .output import spinner, table_console


if TYPE_CHECKING:
    from ..analysis.inspection_results import Inspection

FIGURE_FILE = "inspect.png"


def inspect(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="The text to read.")],
    loops: Annotated[
        int | None, typer.Option("--loops", min=1, help="Number of loops.", show_default="the model's")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Read the output of this layer in every loop with the logit lens, instead of the model's answer.",
        ),
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="Tokens to look at, from the end of the prompt.")] = 8,
    token: Annotated[str | None, typer.Option(help="Follow the rank of this token.")] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where inspect.json and the figure go; name the model's own folder to make them part of its card.",
            show_default="inspections/MODEL",
        ),
    ] = None,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
    quiet: Quiet = False,
) -> None:
    """Show what a model would answer after every loop, and how its state moves."""
    check_text(prompt, "the prompt")
    if token is not None:
        check_text(token, "--token")
    layers = LayerRange(prelude, coda, core)
    name = name_of(model)
    folder = output_dir or Path("inspections") / name.replace("/", "--")

    from ..analysis.inspection import find_token, inspect_prompt
    from ..analysis.inspection_plots import plot_inspection
    from ..analysis.inspection_results import INSPECTION_FILE
    from ..tokenizing import check_token_ids

    with folder_lock(folder):
        with spinner(f"loading {model}", quiet):
            config = load_config(model)
            check_language_model(config, model)
            tokenizer = load_tokenizer(model)
            # what can fail on the arguments, before the weights are read
            if token is not None:
                find_token(tokenizer, token)
            check_token_ids(tokenizer(prompt, return_tensors="pt")["input_ids"], config, model)
            language_model: Any = load_model(model, layers).to(default_device())
        with spinner("reading the loops", quiet):
            options: dict[str, Any] = {"num_loops": loops, "layer": layer, "last": last, "token": token, "label": name}
            found = inspect_prompt(language_model, tokenizer, prompt, **options)
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder / INSPECTION_FILE)
        plot_inspection(found, folder / FIGURE_FILE)
    _print(found)
    for written in (INSPECTION_FILE, FIGURE_FILE):
        print(folder / written)


def _print(found: "Inspection") -> None:
    from rich.table import Table
    from rich.text import Text

    from ..analysis.inspection_results import probability_text

    console = table_console(160)
    what = "the answer" if found.readout == "answer" else f"the logit lens of {found.readout}"
    console.print(f"{found.label}: {what} after every loop", markup=False, highlight=False)
    table = Table()
    table.add_column("loops", justify="right", min_width=5)
    for token in found.tokens:
        # text as it is: a token may look like markup
        table.add_column(Text(token), no_wrap=True)
    for loop, (row, probabilities) in enumerate(zip(found.top, found.probability, strict=True), start=1):
        cells = [Text(f"{text} {probability_text(share)}") for text, share in zip(row, probabilities, strict=True)]
        table.add_row(str(loop), *cells)
    console.print(table)
    columns = {
        "step / state": found.step_norm,
        "cosine with the last": found.cosine,
        "acceleration": found.acceleration,
        "distance to the end": found.distance_to_final,
    }
    if found.followed_rank is not None:
        columns[f"rank of {found.followed!r}"] = [1.0 + row[-1] for row in found.followed_rank]
    table = Table()
    for heading in ("loops", *columns):
        table.add_column(Text(heading), justify="right")
    for loop, values in enumerate(zip(*columns.values(), strict=True), start=1):
        table.add_row(str(loop), *("" if value is None else f"{value:.4g}" for value in values))
    console.print(table)
    _print_ends(console, found)


def _print_ends(console: Any, found: "Inspection") -> None:
    """Say since when the answer is the last one, and whether the state has come to rest."""
    lines = [f"after {found.tokens[-1]}: {found.top[-1][-1]} from loop {found.settled()} on"]
    period, since = found.periods[-1], found.since[-1]
    if period == 1:
        lines.append(f"its state is at a fixed point from loop {since} on")
    elif period:
        lines.append(f"its state is in a cycle of {period} loops from loop {since} on")
    for line in lines:
        console.print(line, markup=False, highlight=False)
