"""`hf-loop chat`: talk with a model, at a depth that can be changed while talking."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .load import LayerRange, default_device, load_recurrent_model, load_tokenizer
from .options import Coda, Core, Prelude, check_text, parse_loops


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELP = "/loops N changes the number of loops, /new starts over, Ctrl-D ends"


def chat(
    model: Annotated[str, typer.Argument(help="A model folder, a repository on the Hub, or a .gguf file.")],
    loops: Annotated[int | None, typer.Option(min=1, help="Number of loops.", show_default="the model's own")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token; above 0 samples with this temperature.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    prelude: Prelude = None,
    coda: Coda = None,
    core: Core = None,
) -> None:
    """Talk with a model; every line that is typed or piped in gets an answer."""
    layers = LayerRange(prelude, coda, core)

    from jinja2 import TemplateError
    from transformers import set_seed

    tokenizer = load_tokenizer(model)
    language_model: Any = load_recurrent_model(model, layers).to(default_device())
    if loops is not None and not language_model.config.has_loops:
        raise ValueError(f"--loops: {model} is a {language_model.config.model_type} model, which has no loops")
    sampling = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0, "temperature": temperature or None}
    talk = Conversation(tokenizer, language_model, loops, sampling)
    _note("no chat template: the model continues the text" if tokenizer.chat_template is None else "", HELP)
    set_seed(seed)
    while (line := _read_line()) is not None:
        try:
            check_text(line, "the line")
            if line.startswith("/"):
                _note(talk.obey(line))
            elif line:
                talk.answer(line)
        except (ValueError, TemplateError) as error:
            _note(f"error: {' '.join(str(error).split())}")


class Conversation:
    """What was said, and how the next answer is made. All of it is read again for every answer, at any depth.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer; without a chat template the model continues the text.
        model (`PreTrainedModel`): a causal language model.
        num_loops (`int`, *optional*): number of loops, by default the model's own.
        sampling (`dict[str, Any]`): further arguments of `generate`.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", model: Any, num_loops: int | None, sampling: dict[str, Any]
    ):
        self.tokenizer = tokenizer
        self.model = model
        self.num_loops = num_loops
        self.sampling = sampling
        self.messages: list[dict[str, str]] = []

    def obey(self, line: str) -> str:
        """Carry out a command, and say what holds now.

        Raises:
            ValueError: if there is no such command, or it does not fit the model.
        """
        command, _, value = line.partition(" ")
        if command == "/new" and not value:
            self.messages = []
            return "a new conversation"
        if command != "/loops":
            raise ValueError(f"there is no command {line}; {HELP}")
        if not self.model.config.has_loops:
            raise ValueError(f"/loops: a {self.model.config.model_type} model has no loops")
        counts = parse_loops(value)
        if len(counts) > 1:
            raise ValueError(f"/loops: give one number, got {value}")
        self.num_loops = counts[0]
        return f"{self.num_loops} loops from here on"

    def answer(self, line: str) -> None:
        """Write the model's answer to a line while it is made, and remember both.

        Raises:
            ValueError: if the conversation cannot be encoded or continued; it then stays as it was.
        """
        from transformers import TextStreamer

        messages = [*self.messages, {"role": "user", "content": line}]
        # a chat template writes the special tokens itself
        has_template = self.tokenizer.chat_template is not None
        inputs = self.tokenizer(self._text(messages), return_tensors="pt", add_special_tokens=not has_template)
        depth = {} if self.num_loops is None else {"num_loops": self.num_loops}
        output = self.model.generate(
            **{name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")},
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **self.sampling,
            **depth,
        )
        answer = self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        self.messages = [*messages, {"role": "assistant", "content": str(answer)}]

    def _text(self, messages: list[dict[str, str]]) -> str:
        if self.tokenizer.chat_template is None:
            # what the model wrote stands on the line that it continues
            starts = ["\n" if message["role"] == "user" else "" for message in messages]
            return "".join(start + message["content"] for start, message in zip(starts, messages)).removeprefix("\n")
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _read_line() -> str | None:
    """Read a line, with a prompt and editing on a terminal; `None` at the end of the input."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        # its import alone lets `input` edit lines; Windows has none
        with suppress(ImportError):
            import readline  # noqa: F401 used by `input`
    try:
        return input("> " if is_terminal else "").strip()
    except EOFError:
        if is_terminal:
            print()
        return None


def _note(*lines: str) -> None:
    """Write lines that are no answer where they do not mix with answers."""
    for line in filter(None, lines):
        print(line, file=sys.stderr, flush=True)
