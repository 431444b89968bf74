"""Measures a puzzle model after every segment: its accuracy, how it fails, and how good its halting head is.

All functions run on boards of Sudoku or mazes as [`hf_loop.tasks`] makes them: `input_ids` and `labels` `[N, T]`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..models.checks import check_count, check_positive_int
from ..models.evaluation_mode import evaluation_mode
from ..models.puzzle_loss import IGNORE_INDEX


# most rows of a table of difficulties
MAX_GROUPS = 12


@dataclass
class SegmentRecord:
    """The answers of a model after every segment, compared with the right ones. `N` puzzles, `S` segments.

    Attributes:
        solved (`torch.Tensor`): `[N, S]`, whether every labelled cell of a puzzle was right.
        cells (`torch.Tensor`): `[N, S]`, the share of labelled cells that were right.
        changed (`torch.Tensor`): `[N, S]`, whether any answer differed from the segment before; true for the first.
        halts (`torch.Tensor`): `[N, S]`, whether the model would halt.
        confidence (`torch.Tensor`, *optional*): `[N, S]`, the halting head's probability that the puzzle is solved;
            `None` for a model without a halting head.
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
        num_rows (`int`): puzzles that were run.
        num_segments (`int`): segments of each.
        exact_accuracy (`float`): share of puzzles that are solved after the last segment.
        ever_solved (`float`): share of puzzles that were solved after at least one segment.
        stays_solved (`float`, *optional*): of the puzzles that were ever solved, the share that stayed solved to the
            end; `None` where none was solved.
        wrong_fixed_points (`float`): share of puzzles that ended wrong and did not change over the last quarter of the
            segments.
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
    """What halting saves and costs, and how well the halting head is calibrated.

    Attributes:
        exact_accuracy (`float`): share of puzzles that are solved after the last segment.
        halted_accuracy (`float`): share of puzzles that are solved where they halt.
        accuracy_lost (`float`): `exact_accuracy - halted_accuracy`.
        oracle_accuracy (`float`): accuracy with an oracle stopping rule: solved after at least one segment.
        mean_segments (`float`): mean segments until a puzzle halts.
        calibration (`list[tuple[float, float, int]]`): reliability diagram in ten bins of the halting probability,
            over all segments: mean predicted probability, fraction solved, count. Empty without a halting head.
        calibration_error (`float`, *optional*): expected calibration error
            (https://huggingface.co/papers/1706.04599); `None` without a halting head.
        segments_by_difficulty (`dict[str, tuple[float, float, int]]`): mean segments until halting, exact accuracy
            where they halt, and count of puzzles, by difficulty: a number, or a range such as `"4-7"` where there are
            many.
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
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    num_segments: int,
    *,
    batch_size: int = 256,
    attention_mask: torch.Tensor | None = None,
) -> SegmentRecord:
    """Run `num_segments` segments on every puzzle and record the answers after each.

    Args:
        model (`Any`): a [`HierarchicalForPuzzle`].
        input_ids, labels (`torch.LongTensor` of shape `[N, T]`): puzzles and answers; -100 is not scored.
        num_segments (`int`): segments to run, which may be more than in training.
        batch_size (`int`): rows in one forward pass.
        attention_mask (`torch.Tensor` of shape `[N, T]`, *optional*): 0 at the padding of smaller puzzles, see
            [`~models.puzzle_inputs.pad_puzzles`].

    Raises:
        ValueError: if a number is no positive integer, or there are no rows.
    """
    num_segments = check_count("num_segments", num_segments)
    batch_size = check_positive_int("batch_size", batch_size)
    if len(input_ids) == 0:
        raise ValueError("input_ids is empty; there is nothing to measure")
    parts = []
    with evaluation_mode(model):
        for start in range(0, len(input_ids), batch_size):
            rows = slice(start, start + batch_size)
            inputs = {"input_ids": input_ids[rows].to(model.device)}
            if attention_mask is not None:
                inputs["attention_mask"] = attention_mask[rows].to(model.device)
            parts.append(_record(model, inputs, labels[rows].to(model.device), num_segments))
    columns = {name: [part[name] for part in parts] for name in parts[0]}
    confidence = None if columns["confidence"][0] is None else torch.cat(columns.pop("confidence"))
    columns.pop("confidence", None)
    return SegmentRecord(**{name: torch.cat(tensors) for name, tensors in columns.items()}, confidence=confidence)


def _record(model: Any, inputs: dict[str, torch.Tensor], answers: torch.Tensor, num_segments: int) -> dict[str, Any]:
    is_labelled = answers != IGNORE_INDEX
    is_cell = inputs.get("attention_mask", torch.ones_like(answers)) != 0
    columns: dict[str, list[torch.Tensor]] = {"solved": [], "cells": [], "changed": [], "halts": []}
    confidences: list[torch.Tensor] = []
    carry, before = None, None
    for _ in range(num_segments):
        outputs = model(**inputs, carry=carry)
        carry, tokens = outputs.carry, outputs.logits.argmax(-1)
        is_right = (tokens == answers) & is_labelled
        columns["solved"].append((is_right | ~is_labelled).all(1))
        columns["cells"].append(is_right.sum(1) / is_labelled.sum(1).clamp(min=1))
        ones = torch.ones(len(answers), dtype=torch.bool, device=answers.device)
        columns["changed"].append(ones if before is None else ((tokens != before) & is_cell).any(1))
        columns["halts"].append(ones & model.halts(outputs.halt_logits))
        if hasattr(model, "halt_head"):
            confidences.append(outputs.halt_logits[:, 0].sigmoid())
        before = tokens
    stacked: dict[str, Any] = {name: torch.stack(values, 1).cpu() for name, values in columns.items()}
    stacked["confidence"] = torch.stack(confidences, 1).cpu() if confidences else None
    return stacked


def segment_accuracy(record: SegmentRecord, segments: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return exact accuracy and cell accuracy after each of the numbers of segments.

    Raises:
        ValueError: if the record has fewer segments.
    """
    longest = record.solved.shape[1]
    if not segments or not all(0 < count <= longest for count in segments):
        raise ValueError(f"segments must lie between 1 and {longest}, got {list(segments)}")
    return {
        count: (record.solved[:, count - 1].float().mean().item(), record.cells[:, count - 1].mean().item())
        for count in segments
    }


def failure_checks(record: SegmentRecord) -> FailureChecks:
    """Measure whether solved puzzles stay solved, and how often a model settles on a wrong answer."""
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
    """Make the easiest puzzles: solutions in which one cell that was blank is left out.

    Args:
        input_ids, labels (`torch.LongTensor` of shape `[N, T]`): puzzles and answers.
        blank (`int`): the token of a blank.
        seed (`int`): seed of the draw of one of each puzzle's blanks.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: puzzles and answers, each `[N, T]`, without puzzles that had no blank.

    Raises:
        ValueError: if no puzzle has a blank.
    """
    is_blank = input_ids == blank
    has_blank = is_blank.any(1)
    if not has_blank.any():
        raise ValueError(f"no row has a cell with the token {blank}")
    is_blank, answers = is_blank[has_blank], labels[has_blank]
    draws = torch.rand(is_blank.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(~is_blank, -1)
    # where there is no answer, smaller puzzles have their padding
    return answers.scatter(1, draws.argmax(1, keepdim=True), blank).clamp(min=0), answers


def halting_quality(record: SegmentRecord, difficulty: Sequence[int], max_segments: int) -> HaltingQuality:
    """Measure what halting costs and saves.

    Args:
        record (`SegmentRecord`): the record of at least `max_segments` segments.
        difficulty (`Sequence[int]`): a number for every puzzle, such as its blanks or dead ends; neighbouring numbers
            are taken together where there are more than twelve.
        max_segments (`int`): segments after which every puzzle halts.

    Raises:
        ValueError: if the record has fewer segments, or not as many puzzles as there are difficulties.
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
    """Group numbers: each by itself, or in ranges of at least `1 / MAX_GROUPS` of the puzzles if there are many."""
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
    """Compute the reliability diagram: mean probability, fraction solved and count of each bin that is not empty."""
    if record.confidence is None:
        return []
    said = record.confidence[:, :max_segments].flatten()
    solved = record.solved[:, :max_segments].flatten().float()
    bins = (said * 10).long().clamp(max=9)
    insides = [bins == index for index in bins.unique()]
    return [(said[inside].mean().item(), solved[inside].mean().item(), int(inside.sum())) for inside in insides]
