"""Rows with a weight for every token, and a segment to repeat.

The second data step of TransformerFAM's fine-tuning (arXiv 2404.09173, section 4): a random stretch of a row is
repeated at its end with a small weight, which a model can only do from what it remembers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq

from ..models.checks import check_positive_int
from ..models.puzzle_loss import IGNORE_INDEX


SEGMENT_MARK = "[repeat random segment]:"


def repeat_segments(
    rows: Dataset, mark: Sequence[int], length: int = 256, weight: float = 0.1, seed: int = 0
) -> Dataset:
    """Repeat a random stretch of each row at its end, behind `mark`.

    Args:
        rows (`Dataset`): with `input_ids` and `labels`.
        mark (`Sequence[int]`): the tokens between the row and the stretch, those of `SEGMENT_MARK`; they carry no
            label.
        length (`int`): tokens of the stretch; the whole row where that is shorter.
        weight (`float`): weight of the repeated tokens; the labels of the row itself have 1.
        seed (`int`): seed of the places where the stretches begin, each a function of the seed and the number of the
            row.

    Returns:
        `Dataset`: `input_ids`, `labels` and `loss_weights`, of one length in a row.

    Raises:
        ValueError: if `length` is no positive integer, or `weight` is negative.
    """
    length = check_positive_int("length", length)
    if weight < 0:
        raise ValueError(f"weight must not be negative, got {weight}")

    def repeat(row: dict[str, list[int]], index: int) -> dict[str, list[Any]]:
        tokens = row["input_ids"]
        count = min(length, len(tokens))
        start = int(np.random.default_rng([seed, index]).integers(len(tokens) - count + 1))
        segment = tokens[start : start + count]
        return {
            "input_ids": [*tokens, *mark, *segment],
            "labels": [*row["labels"], *[IGNORE_INDEX] * len(mark), *segment],
            "loss_weights": [1.0] * len(tokens) + [0.0] * len(mark) + [weight] * count,
        }

    return rows.map(repeat, with_indices=True, remove_columns=rows.column_names, desc="Repeating segments")


class WeightedCollator(DataCollatorForSeq2Seq):
    """`DataCollatorForSeq2Seq` that pads `loss_weights`, where rows have them, beside the labels.

    Raises:
        ValueError: if in a batch some rows have weights and some have none.
    """

    def __call__(self, features: list[dict[str, Any]], return_tensors: str | None = None) -> Any:
        num_weighted = sum("loss_weights" in row for row in features)
        if num_weighted not in (0, len(features)):
            raise ValueError(f"loss_weights must be in all rows of a batch or in none, got {num_weighted} with them")
        rows = [{name: value for name, value in row.items() if name != "loss_weights"} for row in features]
        batch = super().__call__(rows, return_tensors)
        if num_weighted:
            length = batch["labels"].shape[1]
            weights = [torch.as_tensor(row["loss_weights"], dtype=torch.float32) for row in features]
            batch["loss_weights"] = torch.stack([self._pad(row, length - len(row)) for row in weights])
        return batch

    def _pad(self, weights: torch.Tensor, count: int) -> torch.Tensor:
        padding = weights.new_zeros(count)
        is_left = self.tokenizer.padding_side == "left"
        return torch.cat([padding, weights] if is_left else [weights, padding])
