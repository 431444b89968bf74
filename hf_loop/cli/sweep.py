"""`hf-loop sweep`: measure accuracy or perplexity as a function of the number of loops."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..field_values import check_names
from ..output_folders import folder_lock
from ..paths import check_file, name_of
from .load import LayerRange, check_language_model, default_device, load_config, load_model, load_tokenizer
from .options import Coda, Core, Loops, Prelude, Quiet, parse_loops
from .output import quiet_libraries, table_console


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..evaluation import DepthControls, LoopCurve


CONTROLS_FILE, CONTROLS_FIGURE = "controls.json", "controls.png"


def sweep(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    text: Annotated[Path | None, typer.Option(help="Measure perplexity on this text file.")] = None,
    task: Annotated[str | None, typer.Option(help="Measure accuracy on this task: shell_game or coin_flips.")] = None,
    loops: Loops = "1,2,4,8",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where results.json and the figure go; name the model's own folder to make them part of its card.",
            show_default="sweeps/MODEL",
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="With --text: tokens in a window; windows do not overlap.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="With --text: read only so many tokens.")] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="With --task: moves in an example; fewer than in training may be known."),
    ] = None,
    num_examples: Annotated[int, typer.Option(min=1, help="With --task: examples to make.")] = 1024,
    seed: Annotated[int, typer.Option(help="With --task: seed of the examples.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows or examples in one pass.")] = 8,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Also tell what the loss at fewer loops is due to: a readout that never saw such a state (fitted to "
            "one half of the text or examples, measured on the other), or loops that do not run.",
        ),
    ] = False,
    label: Annotated[str | None, typer.Option(help="The curve's name.", show_default="MODEL")] = None,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy or perplexity over loop counts."""
    loop_counts = parse_loops(loops)
    layers = LayerRange(prelude, coda, core)
    if (text is None) == (task is None):
        raise ValueError("Give one of --text FILE (perplexity) and --task NAME (accuracy)")
    if text is not None:
        check_file(text, "--text")
    name = name_of(model)
    folder = output_dir or Path("sweeps") / name.replace("/", "--")

    from ..evaluation import DepthControls, Results, accuracy_over_loops, perplexity_over_loops, plot_loop_curves
    from ..evaluation.perplexity import cut_windows
    from ..evaluation.readout_batches import split_rows, split_windows
    from ..evaluation.results import RESULTS_FILE
    from ..text_files import read_tokens
    from ..tokenizing import check_token_ids

    if quiet:
        quiet_libraries()
    with folder_lock(folder):
        # read the results first: a damaged file must stop the command before the work, not after it
        results = Results.load(folder) if (folder / RESULTS_FILE).is_file() else Results()
        controls_file = folder / CONTROLS_FILE
        if controls and controls_file.is_file():
            DepthControls.load(controls_file)
        config = load_config(model)
        check_language_model(config, model)
        cuts = _cuts(config, loop_counts, model) if controls else []
        tokenizer = load_tokenizer(model)
        # do the cheap things that can fail before the weights are read
        if text is not None:
            input_ids = read_tokens(text, tokenizer, max_tokens)
            check_token_ids(input_ids, config, model)
            measure = partial(perplexity_over_loops, input_ids=input_ids, window=window)
            split: Any = partial(split_windows, cut_windows(input_ids, window))
        else:
            dataset = _task_examples(str(task), tokenizer, length, num_examples, seed)
            measure = partial(accuracy_over_loops, dataset=dataset)
            split = partial(split_rows, dataset)
        halves = split(batch_size) if controls else ()
        language_model = load_model(model, layers).to(default_device())
        options: dict[str, Any] = {"batch_size": batch_size, "label": label or name, "progress": not quiet}
        # first, since what fails here fails at once
        controlled = _controls(language_model, halves, cuts, controls_file, label or name, quiet) if controls else None
        curve: Any = None
        for num_loops in loop_counts:
            part = measure(language_model, loops=[num_loops], **options)
            curve = part if curve is None else curve.joined(part)
            results.add_curve(curve)
            folder.mkdir(parents=True, exist_ok=True)
            # what was measured is not lost with what follows
            file = results.save(folder)
        figure = folder / f"{curve.metric}_over_loops.png"
        plot_loop_curves(results.curves_of(curve.metric), figure)
    _print_curve(curve)
    print(file)
    print(figure)
    if controlled is not None:
        _print_controls(controlled)
        print(controls_file)
        print(controls_file.with_name(CONTROLS_FIGURE))


def _task_examples(
    task: str, tokenizer: "PreTrainedTokenizerBase", length: int | None, num_examples: int, seed: int
) -> "Dataset":
    from .. import tasks

    generators = {"shell_game": tasks.shell_game, "coin_flips": tasks.coin_flips}
    check_names([task], generators, "--task", "task")
    sizes = {} if length is None else {"num_swaps" if task == "shell_game" else "num_moves": length}
    splits, task_tokenizer = generators[task](1, num_examples, **sizes, seed=seed)
    # another vocabulary would give a number without an error, and the number would mean nothing
    if tokenizer.get_vocab() != task_tokenizer.get_vocab():
        raise ValueError(f"--task: the model's tokenizer is not the one of {task}; it was trained on something else")
    return splits["test"]


def _print_curve(curve: "LoopCurve") -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {curve.metric: curve.values}
    if curve.sequence_accuracy is not None:
        columns["whole sequences"] = curve.sequence_accuracy
    console = Console()
    # not as the table's title, which wraps at the table's width
    console.print(f"{curve.metric} of {curve.label}", markup=False)
    table = Table()
    for heading in ("loops", *columns):
        table.add_column(heading, justify="right")
    for count, *values in zip(curve.num_loops, *columns.values(), strict=True):
        table.add_row(str(count), *(f"{value:.4f}" if value < 1e4 else f"{value:.3g}" for value in values))
    console.print(table)
    if curve.trained_loops is not None:
        console.print(f"trained depth {curve.trained_loops:g}, {_safe_range(curve)}")


def _safe_range(curve: "LoopCurve") -> str:
    from ..evaluation import safe_range

    try:
        low, high = safe_range(curve)
    except ValueError as error:
        # the value at the trained depth is no finite number
        return f"no safe range: {error}"
    return f"safe range {low} to {high} loops"


def _cuts(config: Any, loop_counts: list[int], model: str) -> list[int]:
    """Return the loop counts up to full depth, that of the configuration."""
    full = getattr(config, "num_loops", 1)
    cuts = [count for count in loop_counts if count <= full]
    if full == 1 or cuts in ([], [full]):
        raise ValueError(
            f"--controls tells why a model is worse with fewer loops than its own, of which {model} has {full}; "
            f"--loops {','.join(map(str, loop_counts))} names none"
        )
    return cuts


def _controls(
    language_model: Any, halves: Any, cuts: list[int], file: Path, label: str, quiet: bool
) -> "DepthControls":
    from ..evaluation import depth_controls, plot_depth_controls

    controls = depth_controls(language_model, *halves, cuts, path=file, label=label, progress=not quiet)
    plot_depth_controls(controls, file.with_name(CONTROLS_FIGURE))
    return controls


def _print_controls(controls: "DepthControls") -> None:
    from rich.table import Table

    console = table_console(120)
    own = () if controls.shares_loops else ("repeat", "suffix")
    names = ("prefix", *own, "frozen", "temperature", "gains", "affine")
    counted = f"{controls.num_test_tokens} tokens, readouts fitted to {controls.num_fit_tokens} others"
    console.print(f"loss of {controls.label} under controls of depth, in nats ({counted})", markup=False)
    losses = Table()
    for heading in ("loops", *names):
        losses.add_column(heading.replace("temperature", "temp."), justify="right")
    for row in controls.rows:
        losses.add_row(str(row.loops), *(f"{getattr(row, name):.4f}" for name in names))
    console.print(losses)
    console.print("share of the gap to full depth that is explained by")
    shares = Table()
    explaining = [name for name in ("temperature", "gains", "affine", "repeat", "frozen") if name in names]
    for heading in ("loops", "gap", *explaining):
        shares.add_column(heading.replace("temperature", "temp."), justify="right")
    for row in controls.rows:
        if row.loops != controls.num_loops:
            explained = controls.explained_share(row.loops)
            cells = ["-" if (share := explained[name]) is None else f"{100 * share:.1f} %" for name in explaining]
            shares.add_row(str(row.loops), f"{controls.gap(row.loops):.4f}", *cells)
    console.print(shares)
    if controls.shares_loops:
        console.print(
            "All loops share their weights: loop k again is loop k + 1, so that repeat(k) is the whole model and "
            "suffix(k) is prefix(k)."
        )
