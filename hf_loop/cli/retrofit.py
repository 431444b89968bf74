"""`hf-loop retrofit`: a plain checkpoint as a folder with a looped model, or with one that has a memory or sleeps."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .load import LayerRange, load_config, load_plain_model, load_tokenizer
from .options import Coda, Core, Prelude
from .save import check_new_folder, size_on_disk, whole_folder


def retrofit(
    model: Annotated[str, typer.Argument(help="A plain checkpoint: folder, repository on the Hub, or .gguf file.")],
    output_dir: Annotated[Path, typer.Argument(help="Where the new model goes; new or empty.")],
    family: Annotated[
        Literal["looped", "feedback", "sleep"],
        typer.Option(
            help="looped: layers that run several times; feedback: blocks of tokens and a memory; sleep: windows of "
            "tokens that are written into fast weights."
        ),
    ] = "looped",
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
    num_loops: Annotated[
        int | None, typer.Option(min=1, help="Looped: loops of a call that does not say how many.", show_default="2")
    ] = None,
    injection: Annotated[
        Literal["none", "add", "concat", "diagonal"] | None,
        typer.Option(
            help="Looped: how the prelude's output enters each loop; all but diagonal keep one loop the original.",
            show_default="none",
        ),
    ] = None,
    update: Annotated[
        Literal["replace", "damped"] | None,
        typer.Option(
            help="Looped: what a loop does with its result: replace the state, or move it a part of the way.",
            show_default="replace",
        ),
    ] = None,
    fold: Annotated[
        Literal["average", "first"] | None,
        typer.Option(
            help="Looped: share the core's layers between the loops instead of repeating them.", show_default="no"
        ),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(min=0, help="Looped: rank of an update of the core for every loop.", show_default="0, none"),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Feedback: tokens in a block.", show_default="1024")
    ] = None,
    segments: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Feedback: blocks before the current one that are kept whole.", show_default="3"
        ),
    ] = None,
    feedback_length: Annotated[
        int | None, typer.Option(min=0, help="Feedback: vectors in the memory, 0 for none.", show_default="64")
    ] = None,
    first_residual: Annotated[
        bool | None,
        typer.Option(
            "--first-residual",
            help="Feedback: let the first memory add to the learned one, which is nearer to the original.",
        ),
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Sleep: tokens in a window.", show_default="1024")] = None,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Sleep: passes over a window that is full.", show_default="2")
    ] = None,
    eviction: Annotated[
        Literal["hard", "sliding"] | None,
        typer.Option(
            help="Sleep: whether all of a window's keys and values are dropped, or as many stay as are in a window.",
            show_default="hard",
        ),
    ] = None,
    rule: Annotated[
        Literal["hebbian", "delta", "gated_delta", "oja"] | None,
        typer.Option(help="Sleep: how inserted fast-weight layers write.", show_default="gated_delta"),
    ] = None,
) -> None:
    """Make a plain checkpoint a recurrent model; train it with `hf-loop train`."""
    layers = LayerRange(prelude, coda, core)
    given = {
        "num_prelude_layers": prelude,
        "num_coda_layers": coda,
        "core_layers": core,
        "num_loops": num_loops,
        "injection": injection,
        "loop_update": update,
        "fold": fold,
        "loop_lora_rank": lora_rank,
        "block_size": block_size,
        "feedback_length": feedback_length,
        "zero_first_residual": None if first_residual is None else not first_residual,
        "sleep_window": window,
        "num_sleep_passes": passes,
        "eviction": eviction,
        "fast_weight_rule": rule,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if segments is not None:
        options["num_memory_segments"] = _parse_segments(segments)
    if family == "looped":
        options.setdefault("num_loops", 2)
    check_new_folder(output_dir)

    from rich.console import Console

    from ..retrofitting import retrofit as retrofit_model
    from ..retrofitting.families import check_options

    # what does not fit is found before the weights are read
    check_options(family, options)
    if family == "looped":
        layers.plan(load_config(model).num_hidden_layers)
    console = Console()
    with console.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
        recurrent: Any = retrofit_model(load_plain_model(model), family, **options)
    with whole_folder(output_dir) as folder:
        recurrent.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    console.print(
        f"{output_dir}: {_describe(recurrent)}, {recurrent.num_parameters():,} parameters, {size_on_disk(output_dir)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _parse_segments(text: str) -> int | None:
    """A number of segments, `None` for all of them."""
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--segments must be a number from 0, or all, got {text!r}")
    return int(text)


def _describe(model: Any) -> str:
    """The schedule in a few words."""
    config = model.config
    if config.model_type == "feedback_lm":
        segments = "all" if config.num_memory_segments is None else config.num_memory_segments
        return f"blocks of {config.block_size} tokens, {segments} segments, a memory of {config.feedback_length}"
    if config.model_type == "sleep_lm":
        return (
            f"windows of {config.sleep_window} tokens, {config.num_sleep_passes} passes, {config.eviction} eviction, "
            f"{len(config.memory_layers)} fast-weight layers inserted"
        )
    counts = "+".join(str(count) for count in model.model.layer_counts())
    return f"{counts} layers (prelude, core, coda), {config.num_loops} loops"
