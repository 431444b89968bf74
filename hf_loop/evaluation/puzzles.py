"""What a puzzle model answers after every segment, how it fails, and what its halting head is worth.

All functions run on boards of Sudoku or mazes as [`hf_loop.tasks`] makes them: `input_ids` and `labels` `[N, T]`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..models.checks import check_positive_int
from ..models.puzzle_loss import IGNORE_INDEX
from .running import evaluation_mode


# rows of a table of difficulties
MAX_GROUPS = 12


@dataclass
class SegmentRecord:
    """What a model said after every segment.

    Attributes:
        solved: `[N, S]`, whether every labelled cell of a row was right.
        cells: `[N, S]`, the share of labelled cells that were.
        changed: `[N, S]`, whether any answer differed from the segment before; true for the first.
        halts: `[N, S]`, whether the halting head said that the row is done.
        confidence: `[N, S]`, how likely it held that; `None` for a model without a head.
    """

    solved: torch.Tensor
    cells: torch.Tensor
    changed: torch.Tensor
    halts: torch.Tensor
    confidence: torch.Tensor | None


@dataclass
class FailureChecks:
    """Ways in which HRM was found to fail (https://huggingface.co/papers/2601.10679).

    Attributes:
        num_rows: Rows that were run.
        num_segments: Segments of each.
        exact_accuracy: Share of rows that are solved after the last segment.
        ever_solved: Share that was solved after any segment.
        stays_solved: Of the rows that were ever solved, the share that stayed so to the end; `None` where none was.
        wrong_fixed_points: Share of rows that ended wrong and did not change any more over the last quarter.
    """

    num_rows: int
    num_segments: int
    exact_accuracy: float
    ever_solved: float
    stays_solved: float | None
    wrong_fixed_points: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


@dataclass
class HaltingQuality:
    """What the halting head is worth.

    Attributes:
        exact_accuracy: Share of rows that are solved after the last segment.
        halted_accuracy: The same, read where each row halts.
        accuracy_lost: The first less the second.
        oracle_accuracy: Share that a reader who knows the answer would read solved: solved after any segment.
        mean_segments: Segments until a row halts.
        calibration: By tenths of what the head says, after every segment: how likely it holds a row to be solved in
            the mean, how often it is, and how many times it was asked. Empty where there is no such head.
        calibration_error: Mean difference between the two (https://huggingface.co/papers/1706.04599); `None` where
            there is no such head.
        segments_by_difficulty: Mean segments until halting, exact accuracy there and rows, by difficulty: a number, or
            a range such as `"4-7"` where there are many.
    """

    exact_accuracy: float
    halted_accuracy: float
    accuracy_lost: float
    oracle_accuracy: float
    mean_segments: float
    calibration: list[tuple[float, float, int]]
    calibration_error: float | None
    segments_by_difficulty: dict[str, tuple[float, float, int]]

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def record_segments(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, num_segments: int, *, batch_size: int = 256
) -> SegmentRecord:
    """Runs `num_segments` segments on every row and notes what the model says after each.

    Args:
        model: A [`HierarchicalForPuzzle`].
        input_ids, labels (`torch.LongTensor` of shape `[N, T]`): Puzzles and answers; -100 is not scored.
        num_segments: Segments to run, which may be more than in training.
        batch_size: Rows in one forward pass.

    Raises:
        ValueError: A number is no positive integer, or there are no rows.
    """
    num_segments = check_positive_int("num_segments", num_segments)
    batch_size = check_positive_int("batch_size", batch_size)
    if len(input_ids) == 0:
        raise ValueError("input_ids is empty; there is nothing to measure.")
    parts = []
    with evaluation_mode(model):
        for ids, answers in zip(input_ids.split(batch_size), labels.split(batch_size)):
            parts.append(_record(model, ids.to(model.device), answers.to(model.device), num_segments))
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    confidence = None if columns["confidence"][0] is None else torch.cat(columns.pop("confidence"))
    columns.pop("confidence", None)
    return SegmentRecord(**{name: torch.cat(tensors) for name, tensors in columns.items()}, confidence=confidence)


def _record(model: Any, ids: torch.Tensor, answers: torch.Tensor, num_segments: int) -> dict[str, Any]:
    is_labelled = answers != IGNORE_INDEX
    columns: dict[str, list[torch.Tensor]] = {"solved": [], "cells": [], "changed": [], "halts": []}
    confidences: list[torch.Tensor] = []
    carry, before = None, None
    for _ in range(num_segments):
        outputs = model(ids, carry=carry)
        carry, tokens = outputs.carry, outputs.logits.argmax(-1)
        is_right = (tokens == answers) & is_labelled
        columns["solved"].append((is_right | ~is_labelled).all(1))
        columns["cells"].append(is_right.sum(1) / is_labelled.sum(1).clamp(min=1))
        ones = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        columns["changed"].append(ones if before is None else (tokens != before).any(1))
        columns["halts"].append(ones & model.halts(outputs.halt_logits))
        if hasattr(model, "halt_head"):
            confidences.append(outputs.halt_logits[:, 0].sigmoid())
        before = tokens
    stacked: dict[str, Any] = {name: torch.stack(values, 1).cpu() for name, values in columns.items()}
    stacked["confidence"] = torch.stack(confidences, 1).cpu() if confidences else None
    return stacked


def segment_accuracy(record: SegmentRecord, segments: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Exact accuracy, then cell accuracy, after each of the numbers of segments.

    Raises:
        ValueError: The record has fewer segments.
    """
    longest = record.solved.shape[1]
    if not segments or not all(0 < count <= longest for count in segments):
        raise ValueError(f"segments must lie between 1 and {longest}, got {list(segments)}")
    return {
        count: (record.solved[:, count - 1].float().mean().item(), record.cells[:, count - 1].mean().item())
        for count in segments
    }


def failure_checks(record: SegmentRecord) -> FailureChecks:
    """Whether solved boards stay solved, and how often a model settles on a wrong answer."""
    solved = record.solved
    num_rows, num_segments = solved.shape
    ever = solved.any(1)
    first = solved.int().argmax(1)
    later = torch.arange(num_segments)[None] >= first[:, None]
    stayed = ever & (solved | ~later).all(1)
    quarter = max(1, num_segments // 4)
    settled = ~record.changed[:, -quarter:].any(1)
    return FailureChecks(
        num_rows=num_rows,
        num_segments=num_segments,
        exact_accuracy=solved[:, -1].float().mean().item(),
        ever_solved=ever.float().mean().item(),
        stays_solved=(stayed.sum() / ever.sum()).item() if ever.any() else None,
        wrong_fixed_points=(settled & ~solved[:, -1]).float().mean().item(),
    )


def with_one_blank(
    input_ids: torch.Tensor, labels: torch.Tensor, blank: int = 1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The easiest puzzles there are: solutions with one cell left out, the same for puzzle and answer.

    Args:
        input_ids, labels (`torch.LongTensor` of shape `[N, T]`): Puzzles and answers.
        blank: The token of a blank.
        seed: Seed of the draw of a cell for each row, one that was blank.

    Returns:
        Puzzles and answers, each `[N, T]`. Rows without a blank are left out.

    Raises:
        ValueError: No row has a blank.
    """
    is_blank = input_ids == blank
    has_blank = is_blank.any(1)
    if not has_blank.any():
        raise ValueError(f"no row has a cell with the token {blank}")
    is_blank, answers = is_blank[has_blank], labels[has_blank]
    draws = torch.rand(is_blank.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~is_blank, -1)
    return answers.scatter(1, draws.argmax(1, keepdim=True), blank), answers


def halting_quality(record: SegmentRecord, difficulty: Sequence[int], max_segments: int) -> HaltingQuality:
    """What halting costs and saves.

    Args:
        record: What the model said, for at least `max_segments` segments.
        difficulty: A number for every row, such as its blanks or dead ends; neighbouring numbers are taken
            together where there are more than twelve.
        max_segments: Segments after which a row is read in any case.

    Raises:
        ValueError: The record has fewer segments, or not as many rows as there are difficulties.
    """
    num_rows, recorded = record.solved.shape
    if not 0 < max_segments <= recorded:
        raise ValueError(f"max_segments must lie between 1 and {recorded}, got {max_segments}")
    if len(difficulty) != num_rows:
        raise ValueError(f"difficulty must have a number for each of {num_rows} rows, got {len(difficulty)}")
    solved, halts = record.solved[:, :max_segments], record.halts[:, :max_segments].clone()
    halts[:, -1] = True
    stops = halts.int().argmax(1)
    at_stop = solved[torch.arange(num_rows), stops]
    groups, numbers = {}, torch.tensor(list(difficulty))
    for low, high in _ranges(list(difficulty)):
        rows = (low <= numbers) & (numbers <= high)
        segments = (stops[rows] + 1).float().mean().item()
        name = str(low) if low == high else f"{low}-{high}"
        groups[name] = (segments, at_stop[rows].float().mean().item(), int(rows.sum()))
    calibration = _calibration(record, max_segments)
    asked = sum(count for _, _, count in calibration)
    gaps = sum(abs(said - share) * count for said, share, count in calibration)
    exact, halted = solved[:, -1].float().mean().item(), at_stop.float().mean().item()
    return HaltingQuality(
        exact_accuracy=exact,
        halted_accuracy=halted,
        accuracy_lost=exact - halted,
        oracle_accuracy=solved.any(1).float().mean().item(),
        mean_segments=(stops + 1).float().mean().item(),
        calibration=calibration,
        calibration_error=gaps / asked if asked else None,
        segments_by_difficulty=groups,
    )


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Every number by itself, or, of more than `MAX_GROUPS`, ranges that hold at least their share of the rows."""
    counts = Counter(numbers)
    least = 1 if len(counts) <= MAX_GROUPS else len(numbers) / MAX_GROUPS
    ranges, start, rows = [], None, 0
    for number, count in sorted(counts.items()):
        start, rows = number if start is None else start, rows + count
        if rows >= least:
            ranges.append((start, number))
            start, rows = None, 0
    if start is not None:
        ranges.append((start, max(counts)))
    return ranges


def _calibration(record: SegmentRecord, max_segments: int) -> list[tuple[float, float, int]]:
    """Means of what the head says and of what is so, and how many, in each of ten bins that is not empty."""
    if record.confidence is None:
        return []
    said = record.confidence[:, :max_segments].flatten()
    solved = record.solved[:, :max_segments].flatten().float()
    bins = (said * 10).long().clamp(max=9)
    insides = [bins == index for index in bins.unique()]
    return [(said[inside].mean().item(), solved[inside].mean().item(), int(inside.sum())) for inside in insides]
