"""Puzzles on a grid as text and as rows: one token for each cell, the same numbers that HRM's and TRM's data have."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from .counts import whole_number


PAD_TOKEN = "<pad>"


def grid_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each cell: padding is 0, the first of `characters` 1, and so on.

    Raises:
        ValueError: if a character repeats, or there is none.
    """
    if not characters or len(set(characters)) < len(characters):
        raise ValueError(f"characters must be distinct, got {characters!r}")
    vocabulary = {token: index for index, token in enumerate([PAD_TOKEN, *characters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=PAD_TOKEN))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        model_input_names=["input_ids"],
        clean_up_tokenization_spaces=False,
    )


def grid_rows(puzzles: Iterable[dict[str, Any]], characters: str) -> Dataset:
    """Make rows of a puzzle and its answer, with a token for every cell of both.

    Args:
        puzzles (`Iterable[dict[str, Any]]`): dictionaries with `puzzle` and `answer`, texts of equal length, and
            whatever else is to be kept.
        characters (`str`): what cells may hold, in the order of their tokens.

    Raises:
        ValueError: if there are no puzzles, or a cell holds something else.
    """
    rows = [grid_row(puzzle, characters) for puzzle in puzzles]
    if not rows:
        raise ValueError("there are no puzzles")
    return Dataset.from_list(rows)


def grid_row(puzzle: dict[str, Any], characters: str) -> dict[str, Any]:
    """Add the tokens of `puzzle` and `answer` to a row, see [`grid_rows`].

    Raises:
        ValueError: if a cell holds something else than one of `characters`.
    """
    unknown = set(puzzle["puzzle"] + puzzle["answer"]) - set(characters)
    if unknown:
        raise ValueError(f"cells must hold one of {characters!r}, got {''.join(sorted(unknown))!r}")
    tokens = {character: index for index, character in enumerate(characters, 1)}
    cells = {"input_ids": puzzle["puzzle"], "labels": puzzle["answer"]}
    return {**puzzle, **{name: [tokens[character] for character in text] for name, text in cells.items()}}


def check_counts(**counts: int | None) -> None:
    """Refuse numbers of rows or puzzles that are no positive integers; `None` is let through.

    Raises:
        ValueError: names the argument and its value.
    """
    for name, value in counts.items():
        if value is not None and (whole_number(value) is None or value < 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_range(name: str, low: int, high: int, least: int, most: int) -> None:
    """Refuse a range that is empty or reaches outside of what there is.

    Raises:
        ValueError: names the range and its ends.
    """
    if not least <= low <= high <= most:
        raise ValueError(f"min_{name} and max_{name} must lie between {least} and {most}, got {low} and {high}")


def in_turn(puzzles: Sequence[Any], num_rows: int) -> Iterable[tuple[int, Any]]:
    """The number of the pass and a puzzle, for `num_rows` rows that go through the puzzles again and again."""
    for index in range(num_rows):
        yield index // len(puzzles), puzzles[index % len(puzzles)]
