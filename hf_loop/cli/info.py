"""`hf-loop info`: tell what a model is and what it costs, from its configuration and without its weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..gguf_files import is_gguf
from .load import load_config, load_tokenizer
from .options import parse_loops
from .save import size_on_disk


if TYPE_CHECKING:
    from rich.table import Table

# units of whole periods in, a text is read at a steady cost: the first block has no memory, the first window no sleep
STEADY = 8
FOOTNOTE = (
    "FLOPs: two for every parameter and call, without what attention computes from the length of the text; training "
    "takes three times as many."
)
UNITS = ("", "k", "M", "G", "T", "P")


def info(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    loops: Annotated[
        str | None,
        typer.Option(
            help="Loop counts to state the cost at, separated by commas.", show_default="1, the model's own, twice it"
        ),
    ] = None,
) -> None:
    """Tell a model's family, schedule, size and cost, without reading its weights."""
    loop_counts = None if loops is None else parse_loops(loops)
    config: Any = load_config(model)

    from rich.console import Console
    from rich.table import Table

    from ..files import fault_named

    has_loops = getattr(config, "has_loops", False)
    if loop_counts is not None and not has_loops:
        raise ValueError(f"--loops: {model} is a {config.model_type} model, which has no loops")
    with fault_named(f"the configuration of {model}"):
        empty = _empty_model(config)
    facts = {**_family(config, empty), **_training(config, Path(model)), **_sizes(config, empty, model)}
    if has_loops:
        facts["one more loop"] = _one_more_loop(config, empty)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print()
    if loop_counts is None and has_loops:
        loop_counts = sorted({1, config.num_loops, 2 * config.num_loops})
    console.print(_costs(config, empty, loop_counts or [None]))
    console.print(FOOTNOTE, soft_wrap=True)


def _empty_model(config: Any) -> Any:
    """Make the model of a configuration without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..evaluation.model_card import auto_class_name
    from ..models import family_of
    from ..models.transformers_seams import causal_model_class

    family = family_of(config)
    if family is None and causal_model_class(config) is None:
        raise ValueError(f"a {config.model_type} model is no causal language model; hf-loop tells nothing about it")
    with torch.device("meta"):
        if family is None:
            return AutoModelForCausalLM.from_config(config)
        return family.classes[auto_class_name(config, family)](config)


def _family(config: Any, empty: Any) -> dict[str, str]:
    from ..evaluation.model_card import levels_of
    from ..models.backbone import backbone_spec

    levels = levels_of(config)
    if not levels:
        try:
            backbone_spec(config)
            advice = "`hf-loop retrofit` makes it loop"
        except ValueError as error:
            advice = f"hf_loop cannot open it: {' '.join(str(error).split())}"
        return {"family": f"none: a plain {config.model_type} model of {config.num_hidden_layers} layers; {advice}"}
    names = " over ".join(level.model_type.removesuffix("_lm") for level in levels)
    facts = {"family": f"{names} over {config.decoder_config.model_type} ({type(empty).__name__})"}
    for level in levels:
        facts["schedule" if level is levels[0] else f"  of a pass ({level.model_type})"] = level.schedule
    if config.has_loops:
        fixed, once = (len(config.calls(num_loops=count)) for count in (0, 1))
        calls = f"{fixed} + {once - fixed} x loops"
    else:
        calls = str(len(config.calls()))
    facts["layer calls of a pass"] = f"{calls}, of {config.decoder_config.num_hidden_layers} layers"
    return facts


def _training(config: Any, folder: Path) -> dict[str, str]:
    """Say what a model was trained for, by its configuration and by what runs leave beside it."""
    from ..evaluation.puzzle_card import PUZZLE_RESULTS_FILE
    from ..evaluation.results import RESULTS_FILE, Results
    from ..files import read_json
    from ..trainer.recipe_yaml import read_sections
    from ..trainer.run import RECIPE_COPY

    facts = {}
    if getattr(config, "has_loops", False):
        facts["made for"] = f"{config.num_loops} loops"
    if (folder / RESULTS_FILE).is_file():
        results = Results.load(folder)
        if results.loop_sampling:
            facts["made for"] += f", in training {results.loop_sampling}"
        if results.command:
            facts["made by"] = results.command
    if (folder / PUZZLE_RESULTS_FILE).is_file():
        facts["measured on"] = str(read_json(folder / PUZZLE_RESULTS_FILE).get("data"))
    if (folder / RECIPE_COPY).is_file():
        data = read_sections(folder / RECIPE_COPY, [], debug=False)[0]["data"]
        facts["trained on"] = f"task {data['task']}" if data.get("task") else str(data.get("files") or data)
    return facts


def _sizes(config: Any, empty: Any, model: str) -> dict[str, str]:
    from ..gguf_files import quantized_types

    decoder_config = getattr(config, "decoder_config", config)
    facts = {"parameters": f"{empty.num_parameters():,}"}
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    if is_gguf(model):
        facts["weights"] = f"GGUF {', '.join(quantized_types(model)) or 'without quantization'}, unpacked on loading"
    elif any(Path(model).glob("*.safetensors")):
        facts["weights"] = f"{dtype}, {size_on_disk(Path(model))}"
    else:
        facts["weights"] = f"{dtype}, not read"
    if unpacked_from := getattr(decoder_config, "unpacked_from", None):
        facts["weights"] += f", once unpacked from {unpacked_from}"
    if context := getattr(decoder_config, "max_position_embeddings", None):
        facts["longest text"] = f"{context:,} {'cells' if getattr(config, 'kind', '') == 'puzzle' else 'tokens'}"
    try:
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError):
        facts["tokenizer"] = "none"
    else:
        template = "a" if tokenizer.chat_template else "no"
        facts["tokenizer"] = f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens, {template} chat template"
    return facts


def _costs(config: Any, empty: Any, loop_counts: list[Any]) -> "Table":
    from rich.table import Table

    is_puzzle = getattr(config, "kind", "") == "puzzle"
    unit = "cell and segment" if is_puzzle else "token"
    table = Table()
    headings = ["loops", "layer calls", "parameters used", f"FLOPs a {unit}"]
    for heading in headings if is_puzzle else [*headings, "cache bytes a token"]:
        table.add_column(heading, justify="right")
    for num_loops in loop_counts:
        depth = {} if num_loops is None else {"num_loops": num_loops}
        calls = len(config.calls(**depth)) if hasattr(config, "calls") else config.num_hidden_layers
        used = _parameters_per_token(config, empty, depth)
        cells = ["-" if num_loops is None else str(num_loops), str(calls), f"{used:,.0f}", _in_units(2 * used)]
        table.add_row(*cells, *([] if is_puzzle else [f"{_cache_bytes(config, num_loops):,}"]))
    if not is_puzzle and (kept := _kept_tokens(config)) is not None:
        table.caption = f"The cache keeps {kept}."
    return table


def _one_more_loop(config: Any, empty: Any) -> str:
    once, twice = (_parameters_per_token(config, empty, {"num_loops": count}) for count in (1, 2))
    calls = len(config.calls(num_loops=2)) - len(config.calls(num_loops=1))
    text = f"{calls} layer calls, {_in_units(2 * (twice - once))} FLOPs"
    if config.kind == "puzzle":
        return text
    return f"{text}, {_cache_bytes(config, 2) - _cache_bytes(config, 1):,} cache bytes"


def _parameters_per_token(config: Any, empty: Any, depth: dict[str, int]) -> float:
    """Count the parameters that one token of a long text is applied to, each as often as it is called."""
    from ..models.cost import forward_parameters, used_parameters

    if not hasattr(config, "calls"):
        return used_parameters(empty, config)
    period = next((getattr(config, name) for name in ("block_size", "sleep_window") if _has_field(config, name)), 1)
    ends = [forward_parameters(empty, number * period, **depth) for number in (STEADY, STEADY + 1)]
    return (ends[1] - ends[0]) / period


def _cache_bytes(config: Any, num_loops: int | None) -> int:
    import torch

    from ..evaluation import kv_bytes_per_token

    dtype = config.dtype or torch.float32
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    # a sleep model keeps the keys and values of its backbone
    config = config.backbone_config if _has_field(config, "sleep_window") else config
    return kv_bytes_per_token(config, num_loops, dtype)


def _kept_tokens(config: Any) -> str | None:
    """Say of which tokens keys and values are kept, where that is not all of them."""
    if _has_field(config, "sleep_window"):
        window = config.sleep_window
        kept = window if config.eviction == "hard" else 2 * window - 1
        return f"at most {kept:,} tokens, and fast weights of fixed size"
    segments = config.num_memory_segments if _has_field(config, "num_memory_segments") else None
    if segments is None:
        return None
    kept = (segments + 1) * config.block_size
    return f"at most {kept:,} tokens, and {config.feedback_length} vectors of memory in every layer call"


def _has_field(config: Any, name: str) -> bool:
    """Whether a field is one of the model's family; a plain decoder may have one of the same name."""
    from ..models import family_of

    family = family_of(config)
    return family is not None and name in family.own_fields


def _in_units(number: float) -> str:
    index = 0
    while number >= 1000 and index + 1 < len(UNITS):
        number, index = number / 1000, index + 1
    return f"{number:.3g} {UNITS[index]}".rstrip()
