"""`hf-loop retrofit`: make a plain checkpoint a folder with a recurrent model of any family."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from ..field_values import field_docs, parse_field_values, readable
from ..output_folders import whole_folder
from .load import LayerRange, load_config, load_plain_model, load_tokenizer
from .options import Coda, Core, FieldValues, Prelude, Quiet
from .output import spinner
from .save import check_new_folder, size_on_disk


def print_fields(family: str | None) -> None:
    """Print the fields of a family and end the command, if one was named."""
    if family is None:
        return
    from ..retrofitting.families import CONFIGURATIONS, find_family, retrofit_fields

    record = find_family(family)
    docs: dict[str, str] = {}
    for documented in (*reversed(record.config.__mro__), CONFIGURATIONS.get(family)):
        docs |= field_docs(documented)
    for name, (hint, default) in retrofit_fields(record).items():
        typer.echo(f"{name}: {readable(hint)} = {default!r}")
        typer.echo(textwrap.indent(textwrap.fill(docs.get(name, ""), 100), "    "))
    raise typer.Exit


def retrofit(
    model: Annotated[str, typer.Argument(help="A plain checkpoint: folder, repository on the Hub, or .gguf file.")],
    output_dir: Annotated[Path, typer.Argument(help="Where the new model goes; new or empty.")],
    family: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The kind of recurrent model: looped (layers that run several times), feedback (blocks of tokens and "
            "a memory), sleep (windows of tokens that are written into fast weights), or another one.",
        ),
    ] = "looped",
    set_: FieldValues = None,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
    fields: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", is_eager=True, callback=print_fields, help="List what --set takes for a family, and stop."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Make a plain checkpoint a recurrent model; train it with `hf-loop train`."""
    # refuses a range that cannot be read under the option's name
    layers = LayerRange(prelude, coda, core)
    values = parse_field_values(set_ or [])
    ranges = {"num_prelude_layers": layers.prelude, "num_coda_layers": layers.coda, "core_layers": layers.core}
    for name, value in ranges.items():
        if value is not None and name in values:
            raise ValueError(f"--set: {name} is set twice")
    values |= {name: value for name, value in ranges.items() if value is not None}
    check_new_folder(output_dir)

    from rich.console import Console

    from ..models import FAMILIES
    from ..retrofitting import retrofit as retrofit_model
    from ..retrofitting.families import check_fields

    # refuse what does not fit before the weights are read
    check_fields(family, values)
    check_fields(family, values, load_config(model))
    console = Console()
    with spinner(f"loading {model}", quiet):
        tokenizer = load_tokenizer(model)
        recurrent: Any = retrofit_model(load_plain_model(model), family, **values)
    with whole_folder(output_dir) as folder:
        recurrent.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    console.print(
        f"{output_dir}: {FAMILIES[family].describe(recurrent.config)}, {recurrent.num_parameters():,} parameters, "
        f"{size_on_disk(output_dir)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
