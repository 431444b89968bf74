"""Rows of a user's own task, from a file."""

import json
from pathlib import Path
from typing import Any

from ..evaluation.accuracy import padded_batches
from ..files import read_text
from ..models.checks import whole_number
from ..models.puzzle_loss import IGNORE_INDEX


# one row in so many, at the end of a file, is for testing
TEST_SHARE = 4


def read_rows(path: str | Path, vocab_size: int) -> tuple[list[dict[str, list[int]]], list[dict[str, list[int]]]]:
    """Read rows from a file with one JSON object a line, `{"input_ids": [...], "labels": [...]}`.

    Args:
        path (`str` or `Path`): the file. Labels are as [`accuracy_over_loops`] takes them; other fields are ignored.
        vocab_size (`int`): tokens of the model's vocabulary.

    Returns:
        `tuple[list, list]`: rows for training, and the last quarter of the rows for testing.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a line is no such row, a token is not in the vocabulary, or there are fewer than four rows.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            rows.append(_parse_row(line, f"{path}, line {number}", vocab_size))
    if len(rows) < TEST_SHARE:
        raise ValueError(f"{path} must have at least {TEST_SHARE} rows, got {len(rows)}")
    # finds rows with nothing to score
    for _ in padded_batches(rows, len(rows)):
        pass
    num_train = len(rows) - len(rows) // TEST_SHARE
    return rows[:num_train], rows[num_train:]


def _parse_row(line: str, where: str, vocab_size: int) -> dict[str, list[int]]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    row = row if isinstance(row, dict) else {}
    for name, ignored in (("input_ids", ()), ("labels", (IGNORE_INDEX,))):
        tokens = row.get(name)
        if not isinstance(tokens, list) or not tokens or any(whole_number(token) is None for token in tokens):
            raise ValueError(f"{where}: {name} must be a list of integers, got {str(tokens)[:60]}")
        outside = [token for token in tokens if not 0 <= token < vocab_size and token not in ignored]
        if outside:
            raise ValueError(f"{where}: {name} has the token {outside[0]}, and the vocabulary has {vocab_size}")
    if len(row["input_ids"]) != len(row["labels"]):
        lengths = f"{len(row['input_ids'])} and {len(row['labels'])}"
        raise ValueError(f"{where}: input_ids and labels must be of one length, got {lengths}")
    return {name: row[name] for name in ("input_ids", "labels")}


__all__ = ["read_rows"]
