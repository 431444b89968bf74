"""`hf-loop bench`: compare ways to decode with a looped model in time, memory and quality."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output_folders import folder_lock
from ..paths import check_file, name_of
from .load import check_language_model, default_device, load_config, load_model, load_tokenizer
from .options import Quiet, parse_loops
from .output import quiet_libraries, table_console


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..evaluation.bench_results import Bench


def bench(
    model: Annotated[str, typer.Argument(help="A model folder, or a repository on the Hub.")],
    text: Annotated[Path, typer.Option(help="The text file to measure quality on, and to take prompts from.")],
    max_tokens: Annotated[int, typer.Option(min=2, help="Read only so many tokens of the text.")] = 2048,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate for each prompt.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="How often to time every setting.")] = 5,
    loops: Annotated[
        str | None,
        typer.Option(help="Fixed depths, separated by commas.", show_default="powers of two up to the model's own"),
    ] = None,
    exits: Annotated[
        str | None,
        typer.Option(
            metavar="RULE[:THRESHOLD],...",
            help="Exit rules; one without a threshold is measured at several.",
            show_default="all",
        ),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Cache policies.", show_default="own,last_loop,cyclic:2,window:32")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            metavar="LOOPS:TOKENS,...", help="Loops that draft, and tokens that they draft.", show_default="1:4,2:4"
        ),
    ] = None,
    depth_batching: Annotated[
        str | None,
        typer.Option(
            metavar="RULE:THRESHOLD,...",
            help="Exit rules for continuous depth batching of twice as many prompts.",
            show_default="state_change:0.1",
        ),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile the model, too, which takes minutes for every batch size.")
    ] = False,
    batch: Annotated[str, typer.Option(help="Prompts that are continued together.")] = "1,16",
    compare: Annotated[
        list[str] | None, typer.Option(help="Another checkpoint with the same vocabulary; may be repeated.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "--out",
            help="Where bench.json, bench.md and bench.png go; a benchmark that was interrupted there goes on. Name "
            "the model's own folder to make them part of its card.",
            show_default="benches/MODEL",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights of the plain Llama that is timed.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Compare fixed depths, exit rules, cache policies and drafts: time, memory, perplexity and accuracy."""
    counts = None if loops is None else parse_loops(loops)
    check_file(text, "--text")
    name = name_of(model)
    folder = output_dir or Path("benches") / name.replace("/", "--")

    from ..evaluation.bench import WINDOW, bench_settings, run_bench
    from ..evaluation.bench_plots import plot_bench
    from ..evaluation.bench_results import BENCH_FILE, Bench
    from ..evaluation.bench_settings import (
        DEFAULT_BATCHING,
        DEFAULT_DRAFTS,
        DEFAULT_EXITS,
        DEFAULT_POLICIES,
        make_settings,
        parse_batches,
        parse_drafts,
        parse_exits,
        parse_policies,
    )
    from ..evaluation.bench_tables import to_markdown
    from ..evaluation.perplexity import cut_windows
    from ..files import write_text
    from ..text_files import read_tokens
    from ..tokenizing import check_token_ids

    if quiet:
        quiet_libraries()
    # check everything that needs no weights before they are read
    rules = parse_exits(DEFAULT_EXITS if exits is None else exits)
    kept = parse_policies(DEFAULT_POLICIES if policies is None else policies)
    drafts = parse_drafts(DEFAULT_DRAFTS if draft is None else draft)
    batched = parse_exits(DEFAULT_BATCHING if depth_batching is None else depth_batching, "--depth-batching")
    batch_sizes = parse_batches(batch)
    config = load_config(model)
    check_language_model(config, model)
    if not hasattr(config, "num_loops"):
        raise ValueError(f"{model} is a {config.model_type} model, which does not run in loops")
    tokenizer = load_tokenizer(model)
    input_ids = read_tokens(text, tokenizer, max_tokens)
    check_token_ids(input_ids, config, model)
    file = folder / BENCH_FILE
    with folder_lock(folder):
        if file.is_file():
            Bench.load(file).check_settings(bench_settings(cut_windows(input_ids, WINDOW), new_tokens), file)
        others = {name_of(other): _load_other(other, tokenizer) for other in compare or []}
        language_model = load_model(model).to(default_device())
        # of the usual rules, those that the model has the parts for
        if exits is None and not getattr(language_model.config, "exit_gate", False):
            rules = [(rule, threshold) for rule, threshold in rules if rule != "gate"]
        # of drafts, those that leave a loop to go on from them
        drafts = [pair for pair in drafts if draft is not None or pair[0] < language_model.config.num_loops]
        settings = make_settings(
            language_model.config.num_loops, counts, rules, kept, drafts, batched, compiled, list(others)
        )
        result = run_bench(
            language_model,
            input_ids,
            settings,
            batch_sizes=batch_sizes,
            new_tokens=new_tokens,
            rounds=rounds,
            seed=seed,
            others=others,
            path=file,
            label=name,
            progress=not quiet,
        )
        plot_bench(result, folder / "bench.png")
        write_text(folder / "bench.md", to_markdown(result, "bench.png"))
    for size in batch_sizes:
        _print_table(result, size)
    for written in (BENCH_FILE, "bench.md", "bench.png"):
        print(folder / written)


def _load_other(name: str, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    from ..models import family_of
    from .load import load_plain_model, load_recurrent_model

    config = load_config(name)
    check_language_model(config, name)
    # another vocabulary would give a number without an error, and the number would mean nothing
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"--compare: {name} has another vocabulary, so its perplexity cannot be compared")
    loaded = load_plain_model(name) if family_of(config) is None else load_recurrent_model(name)
    return loaded.to(default_device())


def _print_table(result: "Bench", batch: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..evaluation.bench_tables import HEADINGS, refusals, table_rows

    console = table_console(120)
    console.print(f"decoding with {result.label}, batch {batch}:", markup=False)
    table = Table(box=SIMPLE_HEAD)
    shown = [index for index, heading in enumerate(HEADINGS) if heading != "processor time"]
    for index in shown:
        table.add_column(HEADINGS[index], justify="right" if index else "left", no_wrap=index == 0)
    for cells in table_rows(result, batch):
        table.add_row(*(cells[index] for index in shown))
    console.print(table)
    for line in refusals(result, batch):
        console.print(line, markup=False)
