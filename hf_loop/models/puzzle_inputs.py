# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Puzzles as a puzzle model reads them: their cells row by row, in a batch padded at the end, and checked."""

from collections.abc import Sequence
from typing import Any

import torch


def check_puzzles(config: Any, input_ids: torch.Tensor, puzzle_ids: torch.Tensor | None) -> None:
    """Refuse cells and ids that the model has no embedding for.

    Args:
        config (`HierarchicalPuzzleConfig`): configuration of the model.
        input_ids (`torch.LongTensor` of shape `[B, T]`): the puzzles.
        puzzle_ids (`torch.LongTensor` of shape `[B]`, *optional*): index of each puzzle's embedding.

    Raises:
        ValueError: if a cell or an id is out of range, or a tensor has another shape or type.
    """
    _check_range("input_ids", input_ids, config.vocab_size, "tokens of the model's vocabulary", num_dimensions=2)
    if puzzle_ids is None:
        return
    # CODEPATH: a model of a single task has no embedding of the task
    if not config.num_puzzles:
        raise ValueError("`puzzle_ids` must be None: the model has no puzzle embeddings (`num_puzzles` is 0)")
    _check_range("puzzle_ids", puzzle_ids, config.num_puzzles, "puzzle embeddings of the model", num_dimensions=1)
    if len(puzzle_ids) != len(input_ids):
        raise ValueError(f"`puzzle_ids` must have one id for each of {len(input_ids)} puzzles, got {len(puzzle_ids)}")


def _check_range(name: str, ids: torch.Tensor, size: int, what: str, num_dimensions: int) -> None:
    if ids.ndim != num_dimensions or ids.is_floating_point() or not ids.numel():
        shape = (
            "[batch_size, cells], the rows of a board one after the other" if num_dimensions == 2 else "[batch_size]"
        )
        raise ValueError(f"`{name}` must be integers of shape {shape}, got {ids.dtype} of shape {list(ids.shape)}")
    low, high = torch.stack(ids.aminmax()).tolist()
    if low < 0 or high >= size:
        raise ValueError(f"`{name}` must be from 0 to {size - 1}, the {size} {what}, got {low if low < 0 else high}")


def pad_puzzles(rows: Sequence[Sequence[int] | torch.Tensor], value: int = 0) -> tuple[torch.Tensor, Any]:
    """Make a batch of puzzles of several sizes.

    Args:
        rows (`Sequence`): the cells of every puzzle, or their labels.
        value (`int`, *optional*, defaults to 0): what follows a smaller puzzle; -100 in labels.

    Returns:
        `tuple[torch.LongTensor, torch.LongTensor | None]`: the batch `[B, T]` and its attention mask `[B, T]`, `None`
        if all puzzles are of one size.
    """
    puzzles = [torch.as_tensor(row) for row in rows]
    lengths = torch.tensor([len(puzzle) for puzzle in puzzles])
    batch = torch.nn.utils.rnn.pad_sequence(puzzles, batch_first=True, padding_value=value)
    if (lengths == batch.shape[1]).all():
        return batch, None
    return batch, (torch.arange(batch.shape[1]) < lengths[:, None]).long()


__all__ = ["check_puzzles", "pad_puzzles"]
