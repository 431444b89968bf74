"""`hf-loop retrofit`: a plain checkpoint as a folder with a looped model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .load import LayerRange, load_config, load_plain_model, load_tokenizer
from .options import Coda, Core, Prelude
from .save import check_new_folder, size_on_disk, whole_folder


def retrofit(
    model: Annotated[str, typer.Argument(help="A plain checkpoint: folder, repository on the Hub, or .gguf file.")],
    output_dir: Annotated[Path, typer.Argument(help="Where the looped model goes; new or empty.")],
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
    num_loops: Annotated[int, typer.Option(min=1, help="Loops of a call that does not say how many.")] = 2,
    injection: Annotated[
        Literal["none", "add", "concat", "diagonal"],
        typer.Option(help="How the prelude's output enters each loop; all but diagonal keep one loop the original."),
    ] = "none",
    update: Annotated[
        Literal["replace", "damped"],
        typer.Option(help="What a loop does with its result: replace the state, or move it a part of the way."),
    ] = "replace",
    fold: Annotated[
        Literal["average", "first"] | None,
        typer.Option(help="Share the core's layers between the loops instead of repeating them.", show_default="no"),
    ] = None,
    lora_rank: Annotated[
        int, typer.Option(min=0, help="Rank of an update of the core for every loop; 0 for none.")
    ] = 0,
) -> None:
    """Make a plain checkpoint a looped model; train it with `hf-loop train`."""
    layers = LayerRange(prelude, coda, core)
    check_new_folder(output_dir)

    from rich.console import Console

    from ..retrofitting import retrofit as retrofit_model

    # a range that does not fit is found before the weights are read
    layers.plan(load_config(model).get_text_config().num_hidden_layers)
    console = Console()
    with console.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
        looped = retrofit_model(
            load_plain_model(model),
            num_prelude_layers=prelude,
            num_coda_layers=coda,
            core_layers=core,
            num_loops=num_loops,
            injection=injection,
            loop_update=update,
            fold=fold,
            loop_lora_rank=lora_rank,
        )
    with whole_folder(output_dir) as folder:
        looped.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    counts = "+".join(str(count) for count in looped.model.layer_counts())
    console.print(
        f"{output_dir}: {counts} layers (prelude, core, coda), {num_loops} loops, {looped.num_parameters():,} "
        f"parameters, {size_on_disk(output_dir)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
