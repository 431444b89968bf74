"""`hf-loop demo`: a page to see a loop."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..paths import name_of
from .load import (
    check_language_model,
    default_device,
    load_config,
    load_puzzle_model,
    load_recurrent_model,
    load_tokenizer,
)
from .options import Quiet
from .output import spinner


def demo(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The port.", show_default="the first free one from 7860 on"),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    quiet: Quiet = False,
) -> None:
    """Open a page in which to see a model loop; needs `pip install 'hf-loop[demo]'`.

    Language models: continuations at several depths side by side, the answer after every loop, and where tokens exit;
    of a feedback or sleep model, what it still reads of the text. Puzzle models: the board, segment by segment.
    """
    from ..demo.page import import_gradio, serve

    import_gradio()
    with spinner(f"loading {model}", quiet):
        page = build_page(model)
    print(f"{serve(page, host, port)} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def build_page(model: str, name: str | None = None) -> Any:
    """Load a model and build its page.

    Args:
        model (`str`): as in [`load_recurrent_model`].
        name (`str`, *optional*): what the page calls the model, by default as [`name_of`] does.

    Returns:
        `gradio.Blocks`: the page.

    Raises:
        ValueError: if gradio is not installed, or the model cannot be loaded.
        OSError: if there is no such model.
    """
    from ..demo.page import Page
    from ..demo.puzzle_page import puzzle_page
    from ..demo.puzzle_reading import PuzzleReader
    from ..demo.text_page import text_page
    from ..demo.text_reading import TextReader
    from ..evaluation.model_card import levels_of

    name = name or name_of(model)
    config = load_config(model)
    tokenizer = load_tokenizer(model)
    is_puzzle = config.model_type == "hierarchical_puzzle"
    if not is_puzzle:
        check_language_model(config, model)
    loaded: Any = (load_puzzle_model(model) if is_puzzle else load_recurrent_model(model)).to(default_device())
    schedule = "; ".join(level.schedule for level in levels_of(loaded.config))
    size = f"{loaded.num_parameters():,} parameters"
    if is_puzzle:
        return puzzle_page(PuzzleReader(loaded, tokenizer, name), Page(name, f"{schedule}. {size}."))
    page = Page(name, f"{schedule}. {size}.", _example(Path(model)), loaded.generation_config.max_new_tokens)
    return text_page(TextReader(loaded, tokenizer, name), page)


def _example(folder: Path) -> str:
    """Return the prompt that the results beside a model name, if there are any."""
    from ..evaluation.results import RESULTS_FILE, Results

    return (Results.load(folder).prompt or "") if (folder / RESULTS_FILE).is_file() else ""
