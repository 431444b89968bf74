"""`hf-loop scan`: measure which layers of a pretrained checkpoint can run again without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..layer_ranges import parse_layer_range
from ..output_folders import folder_lock
from ..paths import check_file, name_of
from .load import default_device, load_config, load_plain_model, load_tokenizer
from .options import Loops, Quiet, parse_loops
from .output import quiet_libraries


if TYPE_CHECKING:
    from ..evaluation import LayerScan

SCAN_FILE = "scan.json"
# best ranges that are printed; the file holds all
NUM_ROWS = 10


def scan(
    model: Annotated[str, typer.Argument(help="A plain checkpoint: folder, repository on the Hub, or .gguf file.")],
    text: Annotated[Path, typer.Option(help="The text file to measure perplexity on.")],
    loops: Loops = "2",
    update: Annotated[
        Literal["replace", "damped", "both"],
        typer.Option(help="What a loop does with its result: replace the state, or move it a part of the way."),
    ] = "replace",
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST-LAST",
            help="Try ranges inside these layers, counted from 0, both ends included.",
            show_default="all",
        ),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Step of the first layer and of the length of a range.")] = 1,
    min_length: Annotated[int, typer.Option(min=1, help="Fewest layers in a range.")] = 1,
    max_length: Annotated[int | None, typer.Option(min=1, help="Most layers in a range.", show_default="all")] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Read only so many tokens of the text.")] = 2048,
    window: Annotated[int, typer.Option(min=2, help="Tokens in a window; windows do not overlap.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in one pass.")] = 4,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Type of the weights; auto: as stored.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="As torch names it.", show_default="an accelerator")] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where scan.json, scan.csv and the heat map go; a scan that was interrupted there goes on.",
            show_default="scans/MODEL",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity with each range of layers looped, without training."""
    loop_counts = parse_loops(loops)
    inside = None if layers is None else parse_layer_range(layers, "--layers")
    within = None if inside is None else (inside[0], inside[-1])
    check_file(text, "--text")
    name = name_of(model)
    folder = output_dir or Path("scans") / name.replace("/", "--")

    from ..evaluation import LayerScan, layer_ranges, plot_layer_scan, scan_layer_ranges
    from ..evaluation.perplexity import cut_windows
    from ..evaluation.scan import check_scan_loops, check_scannable, text_settings
    from ..files import write_text
    from ..text_files import read_tokens
    from ..tokenizing import check_token_ids

    if quiet:
        quiet_libraries()
    # check everything that needs no weights before they are read
    check_scan_loops(loop_counts)
    torch_device = default_device() if device is None else _parse_device(device)
    config = load_config(model)
    num_layers = check_scannable(config, model)
    ranges = layer_ranges(num_layers, stride=stride, min_length=min_length, max_length=max_length, within=within)
    input_ids = read_tokens(text, load_tokenizer(model), max_tokens)
    check_token_ids(input_ids, config, model)
    windows = cut_windows(input_ids, window)
    file = folder / SCAN_FILE
    with folder_lock(folder):
        if file.is_file():
            LayerScan.load(file).check_settings(text_settings(windows, window), file)
        language_model = load_plain_model(model, dtype).to(torch_device)
        result = scan_layer_ranges(
            language_model,
            windows,
            ranges,
            loop_counts,
            updates=("replace", "damped") if update == "both" else (update,),
            window=window,
            batch_size=batch_size,
            path=file,
            label=name,
            progress=not quiet,
        )
        write_text(folder / "scan.csv", result.to_csv())
        plot_layer_scan(result, folder / "scan.png")
    _print_best(result)
    for written in (SCAN_FILE, "scan.csv", "scan.png"):
        print(folder / written)


def _parse_device(text: str):
    import torch

    try:
        # torch accepts the name of a missing accelerator and fails only when a tensor is put on it
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: {text!r} cannot be used: {error}") from error


def _print_best(result: "LayerScan") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    base = f"{result.base_perplexity:.4f} on {result.num_tokens} tokens"
    console.print(f"perplexity of {result.label}: {base}", markup=False)
    console.print(f"the best of {len(result.cells)} cells:", markup=False)
    table = Table()
    for heading in ("looped layers", "loops", "update", "perplexity", "against the base"):
        table.add_column(heading, justify="right")
    for cell in result.best(NUM_ROWS):
        ratio = result.ratio(cell)
        table.add_row(
            f"{cell.first}-{cell.last}",
            str(cell.num_loops),
            cell.update,
            f"{cell.perplexity:.4f}" if cell.perplexity < 1e4 else f"{cell.perplexity:.3g}",
            f"{100 * (ratio - 1):+.2f} % ± {100 * ratio * cell.standard_error:.2f}",
        )
    console.print(table)
