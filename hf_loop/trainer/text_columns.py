"""Which columns of a dataset hold its text, and what of it is learned.

A column of text is learned whole. Of questions and answers, conversations, prompts and completions, and instructions
(`messages`, `prompt` and `completion`, `instruction` with `input` and `output`: the columns of TRL and of Alpaca) the
answers alone are learned.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..text_files import split_text
from .packing import Segment, SegmentReader


DEFAULT_COLUMN = "text"
# of a text in several rows, whether a row is the last of them
LAST_PIECE = "is_last_piece"
CHAT_COLUMNS = ("messages", "conversations")
ANSWERS = "assistant"
# names of the roles in the format of ShareGPT
ROLES = {"human": "user", "gpt": ANSWERS}


def choose_reader(
    first: Mapping[str, Any], text_column: str, answer_column: str | None, tokenizer: PreTrainedTokenizerBase
) -> SegmentReader:
    """Choose how the rows of a dataset are read, by its columns.

    Args:
        first (`Mapping`): the first row.
        text_column (`str`): `data.text_column`. Where that is the default and there is no such column, the columns of
            a conversation, of prompts and completions, or of instructions are taken.
        answer_column (`str`, *optional*): `data.answer_column`.
        tokenizer (`PreTrainedTokenizerBase`): has the chat template.

    Raises:
        ValueError: if a column is missing, or the tokenizer has no chat template and there must be one.
    """
    first = {name: value for name, value in first.items() if name != LAST_PIECE}
    if answer_column is not None:
        for key, name in (("text_column", text_column), ("answer_column", answer_column)):
            if name not in first:
                raise ValueError(f"data.{key} must be one of {', '.join(first)}, got {name!r}")
        return partial(read_answer, prompt_column=text_column, answer_column=answer_column)
    names = [text_column, *(CHAT_COLUMNS if text_column == DEFAULT_COLUMN else ())]
    column = next((name for name in names if name in first), None)
    if column is not None:
        is_chat = isinstance(first[column], list)
        return ChatReader(tokenizer, column) if is_chat else partial(read_text_row, column=column)
    if text_column == DEFAULT_COLUMN and {"prompt", "completion"} <= first.keys():
        if isinstance(first["prompt"], list):
            return ChatReader(tokenizer, "completion", "prompt")
        return partial(read_answer, prompt_column="prompt", answer_column="completion")
    if text_column == DEFAULT_COLUMN and {"instruction", "output"} <= first.keys():
        return ChatReader(tokenizer, "output", "instruction")
    raise ValueError(f"data.text_column must be one of {', '.join(first)}, got {text_column!r}")


def read_text_row(row: Mapping[str, Any], column: str) -> Iterator[Segment]:
    """Read a text, or a piece of one, all of which is learned. The end-of-text token closes it.

    Raises:
        ValueError: if the column holds something else than text.
    """
    for piece in split_text(_text(row, column)):
        yield piece, True
    if row.get(LAST_PIECE, True):
        yield None, True


def read_answer(row: Mapping[str, Any], prompt_column: str, answer_column: str) -> Iterator[Segment]:
    """Read a prompt and its answer, joined as they are; the answer is learned, and the token that closes it.

    Raises:
        ValueError: if a column holds something else than text.
    """
    for column, is_learned in ((prompt_column, False), (answer_column, True)):
        for piece in split_text(_text(row, column)):
            yield piece, is_learned
    yield None, True


@dataclass
class ChatReader:
    """Reads conversations by the tokenizer's chat template, which closes every turn; the answers are learned.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): has the template.
        column (`str`): the conversation, or what is learned of it.
        prompt_column (`str`, *optional*): what comes before it, in which nothing is learned.

    Raises:
        ValueError: if the tokenizer has no chat template; on a call, if a row is no conversation, or the template
            refuses it.
    """

    tokenizer: PreTrainedTokenizerBase
    column: str
    prompt_column: str | None = None

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the column {self.column!r} needs a tokenizer with a chat template, which data.tokenizer lacks: name "
                "one that has it, or give columns of plain text as data.text_column and data.answer_column"
            )

    def __call__(self, row: Mapping[str, Any]) -> Iterator[Segment]:
        prompt = [] if self.prompt_column is None else _turns(row, self.prompt_column, "user")
        messages = [*prompt, *_turns(row, self.column, ANSWERS)]
        answers = [i for i in range(len(prompt), len(messages)) if messages[i].get("role") == ANSWERS]
        # of every answer the text before it and the text with it
        turns = [(self._render(messages[:i], True), self._render(messages[: i + 1], False)) for i in answers]
        # some templates leave parts of earlier answers out of later prompts: each answer is then learned by itself
        is_one = all(turns[-1][1].startswith(whole) for _, whole in turns)
        place = 0
        for before, whole in turns:
            # not all of `before`, which may begin a part of the answer that this one does not have
            start = max(place, len(commonprefix([before, whole])))
            yield whole[place:start], False
            yield whole[start:], True
            place = len(whole) if is_one else 0

    def _render(self, messages: list[Any], is_prompt: bool) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt))
        except (TemplateError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"the tokenizer's chat template refuses a row of {self.column!r}: {error}") from error


def _turns(row: Mapping[str, Any], column: str, role: str) -> list[dict[str, Any]]:
    """Return the turns of a conversation, or those that a text stands for."""
    value = row[column]
    if isinstance(value, str):
        # the instructions of Alpaca have an input of their own
        given = row.get("input") if column == "instruction" else None
        return [{"role": role, "content": f"{value}\n\n{given}" if given else value}]
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"column {column!r} must hold a list of turns with role and content, got {value!r}")
    return [_turn(turn) for turn in value]


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn by the names of the chat templates, without the keys that the data has for other turns only."""
    given = {name: value for name, value in turn.items() if value is not None}
    if "from" not in given:
        return given
    return {"role": ROLES.get(given["from"], given["from"]), "content": given.get("value", "")}


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row[column], str):
        raise ValueError(f"data: the column {column!r} must hold text in every row, got {row[column]!r}")
    return row[column]
