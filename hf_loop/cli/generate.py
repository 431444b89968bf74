"""`hf-loop generate`: one prompt, continued at several loop counts."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .load import LayerRange, default_device, load_model, load_tokenizer
from .options import Coda, Core, Loops, Prelude, parse_loops


if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

MIN_COLUMN_WIDTH = 18


def generate(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    loops: Loops = "1,2,4,8",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of each continuation.")] = 32,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token; above 0 samples with this temperature.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling, the same for each loop count.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt through the chat template.")] = False,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
) -> None:
    """Continue a prompt at several loop counts, side by side."""
    loop_counts = parse_loops(loops)
    layers = LayerRange(prelude, coda, core)

    from rich.console import Console
    from transformers import set_seed

    console = Console()
    with console.status(f"loading {model}"):
        tokenizer = load_tokenizer(model)
        # transformers annotates the `self` of generate as a protocol of its own, which no model fits
        language_model: Any = load_model(model, layers).to(default_device())
    input_ids, attention_mask = (tensor.to(language_model.device) for tensor in _encode(tokenizer, prompt, chat))
    continuations = {}
    for num_loops in loop_counts:
        with console.status(f"{num_loops} loops"):
            # the same random numbers for each count, so that only the depth differs
            set_seed(seed)
            output = language_model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                num_loops=num_loops,
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature if temperature > 0 else None,
            )
        texts = tokenizer.batch_decode(output[:, input_ids.shape[1] :], skip_special_tokens=True)
        continuations[num_loops] = texts[0].strip()
    console.print(_side_by_side(continuations, console.width))


def _side_by_side(continuations: dict[int, str], width: int) -> "Table":
    """One column for each loop count, or one row for each where the terminal is too narrow for columns."""
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


def _encode(tokenizer: "PreTrainedTokenizerBase", prompt: str, chat: bool) -> "tuple[torch.Tensor, torch.Tensor]":
    if chat:
        if tokenizer.chat_template is None:
            raise ValueError("--chat: this model's tokenizer has no chat template.")
        messages = [{"role": "user", "content": prompt}]
        prompt = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    # a chat template writes the special tokens itself
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("The prompt is empty.")
    return inputs["input_ids"], inputs["attention_mask"]
