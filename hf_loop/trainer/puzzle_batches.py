"""Batches of puzzles of several sizes: smaller ones are padded at the end, and padding is not scored."""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import default_data_collator

from ..models.puzzle_inputs import pad_puzzles
from ..models.puzzle_loss import IGNORE_INDEX


# what follows the cells of a smaller puzzle
PADDING = {"input_ids": 0, "labels": IGNORE_INDEX, "attention_mask": 0}


class PuzzleCollator:
    """A data collator that pads puzzles to the largest of a batch, and adds a mask if their sizes differ."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        names = [name for name in ("input_ids", "labels") if name in features[0]]
        padded = {name: pad_puzzles([row[name] for row in features], PADDING[name]) for name in names}
        others = default_data_collator(
            [{name: value for name, value in row.items() if name not in names} for row in features]
        )
        batch = {**others, **{name: tensor for name, (tensor, _) in padded.items()}}
        mask = padded["input_ids"][1]
        return batch if mask is None else {**batch, "attention_mask": mask}


def widen(rows: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    """Pad a batch of puzzles to `length` cells, with a mask.

    Args:
        rows (`dict[str, torch.Tensor]`): the columns of the batch, each `[B, ...]`.
        length (`int`): number of cells after that.
    """
    cells = rows["input_ids"]
    rows = {"attention_mask": torch.ones_like(cells), **rows}
    padding = (0, length - cells.shape[1])
    return {
        name: pad(tensor, padding, value=PADDING[name]) if name in PADDING else tensor for name, tensor in rows.items()
    }
