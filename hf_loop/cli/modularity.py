"""`hf-loop modularity`: are two subroutines in different weights, and does every loop use the same ones?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..field_values import check_names
from ..output_folders import folder_lock
from ..paths import check_file, name_of
from .load import check_language_model, default_device, load_config, load_model, load_tokenizer
from .options import Quiet
from .output import quiet_libraries


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TASKS = ("two_subroutines",)


def modularity(
    model: Annotated[str, typer.Argument(help="A looped model: folder or repository on the Hub.")],
    task: Annotated[
        str | None, typer.Option(help="A task of two subroutines that the model was trained on: two_subroutines.")
    ] = None,
    rows_a: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="In place of --task: rows that need the first subroutine alone, a JSON object with input_ids and "
            "labels in each line. The last quarter of them is for testing.",
        ),
    ] = None,
    rows_b: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Rows that need the second subroutine alone.")
    ] = None,
    difficulty: Annotated[int, typer.Option(min=1, help="With --task: moves in a row.")] = 8,
    num_rows: Annotated[int, typer.Option(min=1, help="With --task: rows to train each mask on.")] = 1024,
    num_test_rows: Annotated[int, typer.Option(min=1, help="With --task: rows to test with.")] = 512,
    seeds: Annotated[int, typer.Option(min=1, help="Mask seeds; a later run with more goes on from these.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the rows for each mask.")] = 15,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of the masks' scores.")] = 0.02,
    l0_penalty: Annotated[float, typer.Option(help="Weight of the share of kept weights in the loss.")] = 2.0,
    ablation: Annotated[
        Literal["zero", "random"], typer.Option(help="What becomes of the weights of an ablated subnetwork.")
    ] = "zero",
    all_layers: Annotated[bool, typer.Option("--all-layers", help="Mask layers outside of the loops too.")] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where modularity.json, the table, the figure and the masks go; a search that was interrupted there "
            "goes on.",
            show_default="modularity/MODEL",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Find the weights of two subroutines, in all loops and in each."""
    if (task is None) == (rows_a is None and rows_b is None):
        raise ValueError("Give --task NAME, or --rows-a FILE and --rows-b FILE")
    if task is not None:
        check_names([task], TASKS, "--task", "task")
    else:
        for file, option in ((rows_a, "--rows-a"), (rows_b, "--rows-b")):
            if file is None:
                raise ValueError(f"{option} FILE is missing: each subroutine needs rows of its own")
            check_file(file, option)
    name = name_of(model)
    folder = output_dir or Path("modularity") / name.replace("/", "--")

    from ..analysis.modularity import RESULTS_FILE, measure_modularity
    from ..analysis.modularity_plots import plot_modularity
    from ..analysis.modularity_training import MaskTraining
    from ..files import write_text

    if quiet:
        quiet_libraries()
    training = MaskTraining(
        num_epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, l0_penalty=l0_penalty
    )
    with folder_lock(folder):
        config = load_config(model)
        check_language_model(config, model)
        if task is not None:
            rows = _task_rows(load_tokenizer(model), difficulty, num_rows, num_test_rows)
        else:
            rows = _file_rows({"a": rows_a, "b": rows_b}, config.vocab_size)
        language_model = load_model(model).to(default_device())
        results = measure_modularity(
            language_model,
            rows,
            training=training,
            seeds=range(seeds),
            ablation=ablation,
            outside=all_layers,
            folder=folder,
            label=name,
            progress=not quiet,
        )
        write_text(folder / "modularity.md", results.to_markdown())
        plot_modularity(results, folder / "modularity.png")
    print(results.to_markdown())
    for written in (RESULTS_FILE, "modularity.md", "modularity.png"):
        print(folder / written)


def _task_rows(
    tokenizer: "PreTrainedTokenizerBase", difficulty: int, num_rows: int, num_test_rows: int
) -> dict[str, list[Any]]:
    from ..tasks import two_subroutines

    splits, task_tokenizer = two_subroutines(
        1, num_test_rows, difficulty, min_difficulty=difficulty, num_isolated=num_rows
    )
    # another vocabulary would give numbers without an error, and they would mean nothing
    if tokenizer.get_vocab() != task_tokenizer.get_vocab():
        raise ValueError(
            "--task: the model's tokenizer is not the one of two_subroutines; it was trained on something else"
        )
    return {str(name): list(rows) for name, rows in splits.items()}


def _file_rows(files: dict[str, Any], vocab_size: int) -> dict[str, list[Any]]:
    from ..analysis.modularity_rows import read_rows

    rows = {}
    for name, file in files.items():
        rows[f"train_{name}"], rows[f"test_{name}"] = read_rows(file, vocab_size)
    return rows
