"""`hf-loop generate`: continue one prompt at several loop counts, or with a memory that is kept."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..paths import check_file, check_new_file
from .load import LayerRange, default_device, load_recurrent_model, load_tokenizer
from .options import Coda, Core, Prelude, Quiet, check_text, parse_loops
from .output import spinner


if TYPE_CHECKING:
    import torch
    from rich.table import Table

MIN_COLUMN_WIDTH = 18
SETTINGS_FILE = "generation_config.json"


DEFAULT_LOOPS = "1,2,4,8"


def generate(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    loops: Annotated[
        str | None, typer.Option(help="Loop counts, separated by commas.", show_default=DEFAULT_LOOPS)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of each continuation.")] = 32,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token; above 0 samples with this temperature.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling, the same for each loop count.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt through the chat template.")] = False,
    memory: Annotated[
        Path | None, typer.Option(help="Go on from this memory of a model that has one; the prompt comes after it.")
    ] = None,
    save_memory: Annotated[
        Path | None, typer.Option(help="Keep the memory of prompt and continuation in this file.")
    ] = None,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt at several loop counts, side by side, or with a memory."""
    check_text(prompt, "the prompt")
    loop_counts = parse_loops(loops or DEFAULT_LOOPS)
    layers = LayerRange(prelude, coda, core)
    if memory is not None:
        check_file(memory, "--memory")
    if save_memory is not None:
        check_new_file(save_memory, "--save-memory")

    from rich.console import Console

    from ..tokenizing import check_token_ids, encode_prompt

    console = Console()
    with spinner(f"loading {model}", quiet):
        tokenizer = load_tokenizer(model)
        # transformers annotates the `self` of generate as a protocol of its own, which no model fits
        language_model: Any = load_recurrent_model(model, layers).to(default_device())
    has_loops, has_memory = hasattr(language_model.config, "num_loops"), hasattr(language_model, "load_memory")
    if loops is not None and not has_loops:
        raise ValueError(f"--loops: {model} is a {language_model.config.model_type} model, which has no loops")
    if not has_memory and (memory is not None or save_memory is not None):
        option = "--save-memory" if memory is None else "--memory"
        raise ValueError(f"{option}: {model} is a {language_model.config.model_type} model, which keeps no memory")
    cache = None if memory is None else language_model.load_memory(memory)
    if chat and tokenizer.chat_template is None:
        raise ValueError("--chat: this model's tokenizer has no chat template")
    # with a memory the prompt continues a text, so it gets no start token
    inputs = encode_prompt(tokenizer, prompt, chat, is_start=memory is None)
    check_token_ids(inputs[0], language_model.config, model)
    sampling = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0, "temperature": temperature or None}
    continuations = {}
    for num_loops in loop_counts if has_loops else [None]:
        with spinner(f"{num_loops} loops" if num_loops else "reading and writing", quiet), _settings_named(model):
            tokens, cache_after = _continue(language_model, inputs, cache, seed, num_loops, sampling)
        continuations[num_loops] = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    try:
        if save_memory is not None:
            language_model.save_memory(cache_after, save_memory)
    finally:
        # also where the disk is full: the text is a result of its own
        if has_loops:
            console.print(_side_by_side(continuations, console.width))
        else:
            console.print(continuations[None], markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _settings_named(model: str) -> Generator[None]:
    """Name the file of settings that `generate` takes as they are and then fails on."""
    try:
        yield
    except (TypeError, AttributeError, KeyError) as error:
        if not (Path(model) / SETTINGS_FILE).is_file():
            raise
        raise ValueError(f"{model}/{SETTINGS_FILE}: {type(error).__name__}: {error}") from error


def _continue(
    model: Any,
    inputs: "tuple[torch.Tensor, torch.Tensor]",
    cache: Any,
    seed: int,
    num_loops: int | None,
    sampling: dict[str, Any],
) -> "tuple[torch.Tensor, Any]":
    """Return the new tokens `[T]`, and the cache after all of them."""
    import torch
    from transformers import set_seed

    from ..models.transformers_seams import cache_of, named_cache

    input_ids, attention_mask = (tensor.to(model.device) for tensor in inputs)
    # the same random numbers for each loop count, so that only the depth differs
    set_seed(seed)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        **named_cache(cache),
        return_dict_in_generate=True,
        **sampling,
        **({} if num_loops is None else {"num_loops": num_loops}),
    )
    cache = cache_of(output)
    if num_loops is None:
        # `generate` does not run the last token it sampled: run it, or the memory lacks it
        with torch.no_grad():
            unread = output.sequences[:, cache.get_seq_length() :]
            cache = model(input_ids=unread, cache=cache, use_cache=True).cache
    return output.sequences[0, input_ids.shape[1] :], cache


def _side_by_side(continuations: dict[Any, str], width: int) -> "Table":
    """Lay out one column for each loop count, or one row for each where the terminal is too narrow."""
    from rich.table import Table
    from rich.text import Text

    # Text, because rich would read [brackets] in a string as markup
    texts = [Text(continuation) for continuation in continuations.values()]
    headings = [f"{count} loop{'s' if count > 1 else ''}" for count in continuations]
    if len(texts) * MIN_COLUMN_WIDTH <= width:
        table = Table(*headings, expand=True)
        table.add_row(*texts)
        return table
    table = Table("loops", "continuation", show_lines=True)
    for count, text in zip(continuations, texts, strict=True):
        table.add_row(str(count), text)
    return table
