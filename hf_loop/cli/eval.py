"""`hf-loop eval`: benchmarks of lm-eval over the number of loops."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output_folders import folder_lock
from ..paths import name_of, no_such
from .load import LayerRange, default_device, load_recurrent_model, load_tokenizer
from .options import Coda, Core, Prelude, parse_loops


if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation.benchmarks import BenchmarkResults

DEFAULT_LOOPS = "1,2,4,8"


def eval_(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval, separated by commas.")],
    loops: Annotated[
        str | None, typer.Option(help="Loop counts, separated by commas.", show_default=DEFAULT_LOOPS)
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where benchmarks.json and the figures go; an evaluation that was interrupted there goes on.",
            show_default="evals/MODEL",
        ),
    ] = None,
    include_path: Annotated[Path | None, typer.Option(help="A folder with YAML files of further tasks.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question.", show_default="the task's own")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task.", show_default="all")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in one pass.")] = 8,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
) -> None:
    """Measure tasks of lm-eval over loop counts; needs `pip install 'hf-loop[eval]'`."""
    loop_counts: list[Any] = list(parse_loops(loops or DEFAULT_LOOPS))
    layers = LayerRange(prelude, coda, core)
    names = [name.strip() for name in tasks.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"--tasks: name tasks once each, separated by commas, got {tasks!r}")
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--include-path: {no_such('folder', include_path)}")
    folder = output_dir or Path("evals") / name_of(model).replace("/", "--")

    from ..evaluation import plot_loop_curves
    from ..evaluation.benchmarks import BENCHMARKS_FILE, benchmarks_over_loops, find_tasks

    manager = find_tasks(names, include_path)
    with folder_lock(folder):
        tokenizer = load_tokenizer(model)
        if chat and tokenizer.chat_template is None:
            raise ValueError("--chat: this model's tokenizer has no chat template")
        language_model: Any = load_recurrent_model(model, layers).to(default_device())
        if not language_model.config.has_loops:
            if loops is not None:
                raise ValueError(f"--loops: {model} is a {language_model.config.model_type} model, which has no loops")
            loop_counts = [None]
        folder.mkdir(parents=True, exist_ok=True)
        results = benchmarks_over_loops(
            language_model,
            tokenizer,
            names,
            loop_counts,
            folder / BENCHMARKS_FILE,
            manager=manager,
            batch_size=batch_size,
            num_fewshot=num_fewshot,
            limit=limit,
            chat=chat,
        )
        figures = {}
        for curve in results.curves():
            figures.setdefault(folder / f"{curve.metric}_of_tasks.png", []).append(curve)
        for figure, curves in figures.items():
            plot_loop_curves(curves, figure)

    from rich.console import Console

    Console().print(_table(results, names))
    for path in (folder / BENCHMARKS_FILE, *figures):
        print(path)


def _table(results: "BenchmarkResults", names: list[str]) -> "Table":
    from rich.table import Table

    table = Table("task", "metric")
    for heading in ("loops", "value", "±", "guessing", "examples"):
        table.add_column(heading, justify="right")
    for name in names:
        items = [item for item in results.results if item.task == name]
        for item in sorted(items, key=lambda item: item.num_loops or 0):
            metric, value, error = item.main
            numbers = [_number(number) for number in (value, error, item.guessing)]
            table.add_row(name, metric, str(item.num_loops or "-"), *numbers, f"{item.num_examples:,}")
        table.add_section()
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
