"""`hf-loop unroll`: write a looped model as the plain checkpoint that computes the same."""

from pathlib import Path
from typing import Annotated

import typer

from ..output_folders import whole_folder
from .load import load_model, load_tokenizer
from .options import Quiet
from .output import spinner
from .save import check_new_folder, size_on_disk


def unroll(
    model: Annotated[str, typer.Argument(help="A looped model: a folder, or a repository on the Hub.")],
    output_dir: Annotated[Path, typer.Argument(help="Where the plain model goes; new or empty.")],
    num_loops: Annotated[
        int | None, typer.Option(min=1, help="Loops to write out.", show_default="the model's own")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a looped model's loops out as a plain checkpoint that any engine serves."""
    check_new_folder(output_dir)

    from rich.console import Console

    from ..retrofitting import unroll as unroll_model

    console = Console()
    with spinner(f"loading {model}", quiet):
        tokenizer = load_tokenizer(model)
        looped = load_model(model)
        unrolled = unroll_model(looped, num_loops)
    with whole_folder(output_dir) as folder:
        unrolled.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    looped_layers = looped.config.backbone_config.num_hidden_layers
    console.print(
        f"{output_dir}: {type(unrolled).__name__}, {unrolled.config.num_hidden_layers} layers for {looped_layers}, "
        f"{unrolled.num_parameters():,} parameters for {looped.num_parameters():,}, {size_on_disk(output_dir)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
