"""Text and rows in batches of two kinds: some that a readout is fitted to, and others that are measured."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

from ..models.checks import check_positive_int
from ..models.puzzle_loss import IGNORE_INDEX


# `input_ids` and `labels`, each `[B, T]`, and where there is padding `attention_mask`
Batch = Mapping[str, torch.Tensor]


def scored_states(states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states `[N, D]` from which labelled tokens are predicted, in fp32, and the labels `[N]`."""
    labels = labels[:, 1:]
    is_scored = labels != IGNORE_INDEX
    # maps are fitted in fp32, whatever the model computes in
    return states[:, :-1][is_scored].float(), labels[is_scored]


def count_labels(batch: Batch) -> int:
    """Count the tokens of a batch that are predicted and scored."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def _rows(batches: Sequence[Batch]) -> list[bytes]:
    """Return what each row of the batches holds, without its padding."""
    found = []
    for batch in batches:
        ids = batch["input_ids"]
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids).bool()
        for row_ids, row_labels, kept in zip(ids, batch["labels"], mask, strict=True):
            found.append(torch.stack([row_ids[kept], row_labels[kept]]).long().cpu().numpy().tobytes())
    return found


def digest_batches(batches: Sequence[Batch]) -> str:
    """Return a short digest of what the rows hold, whatever batches they are in."""
    digest = hashlib.sha256()
    for row in _rows(batches):
        digest.update(len(row).to_bytes(8, "little") + row)
    return digest.hexdigest()[:16]


def check_disjoint(fit_batches: Sequence[Batch], test_batches: Sequence[Batch]) -> None:
    """Refuse rows that are in both.

    Raises:
        ValueError: if there are any.
    """
    both = set(_rows(fit_batches)) & set(_rows(test_batches))
    if both:
        raise ValueError(
            f"readouts must not be fitted to what is measured: {len(both)} rows are in fit_batches and test_batches"
        )


def split_windows(windows: Sequence[torch.Tensor], batch_size: int) -> tuple[list[Batch], list[Batch]]:
    """Make batches of the windows `[T]` of a text: of the first half to fit to, of the second half to measure.

    Halves are further apart than neighbouring windows. A window of the second half that is in the first, too, is left
    out.

    Args:
        windows (`Sequence[torch.Tensor]`): the windows, in the order of the text.
        batch_size (`int`): windows of equal length in one pass.

    Raises:
        ValueError: if there is nothing to fit to or to measure.
    """
    rows = [{"input_ids": tokens, "labels": tokens} for tokens in windows]
    return _split(rows[: len(rows) // 2], rows[len(rows) // 2 :], batch_size)


def split_rows(rows: Dataset | Sequence[Mapping[str, Any]], batch_size: int) -> tuple[list[Batch], list[Batch]]:
    """Make batches of the rows of a task: of every other row to fit to, of the others to measure.

    Rows are often ordered by difficulty, so that halves would differ in it. A row to measure that is among the others,
    too, is left out.

    Args:
        rows (`Dataset` or a sequence of mappings): rows with `input_ids` and `labels`.
        batch_size (`int`): rows of equal length in one pass.

    Raises:
        ValueError: if there is nothing to fit to or to measure.
    """
    found = (rows[index] for index in range(len(rows)))
    tensors = [{name: torch.as_tensor(row[name]) for name in ("input_ids", "labels")} for row in found]
    return _split(tensors[::2], tensors[1::2], batch_size)


def _split(
    to_fit: list[dict[str, torch.Tensor]], to_test: list[dict[str, torch.Tensor]], batch_size: int
) -> tuple[list[Batch], list[Batch]]:
    batch_size = check_positive_int("batch_size", batch_size)

    def content(row: Mapping[str, torch.Tensor]) -> tuple:
        return tuple(row["input_ids"].tolist()), tuple(row["labels"].tolist())

    seen = set(map(content, to_fit))
    to_test = [row for row in to_test if content(row) not in seen]
    if not to_fit or not to_test:
        raise ValueError(
            "controls need two different windows or rows at least, one to fit a readout to and one to measure"
        )
    return even_batches(to_fit, batch_size), even_batches(to_test, batch_size)


def even_batches(rows: Sequence[Batch], batch_size: int) -> list[Batch]:
    """Group consecutive rows of equal length, so that nothing needs padding.

    Args:
        rows (`Sequence[Batch]`): rows with `input_ids` and `labels`, each `[T]`.
        batch_size (`int`): the most rows of a batch.
    """
    groups: list[list[Batch]] = []
    for row in rows:
        same = groups and len(groups[-1][0]["input_ids"]) == len(row["input_ids"])
        if same and len(groups[-1]) < batch_size:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [{name: torch.stack([row[name] for row in group]) for name in ("input_ids", "labels")} for group in groups]
