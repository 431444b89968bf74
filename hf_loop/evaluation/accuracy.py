"""Accuracy of a causal language model as a function of the number of loops."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..models.checks import check_positive_int
from ..models.evaluation_mode import evaluation_mode
from ..models.puzzle_loss import IGNORE_INDEX
from .curves import LoopCurve, check_loops
from .running import trained_loops


def accuracy_over_loops(
    model: PreTrainedModel,
    dataset: Dataset | Sequence[Mapping[str, Any]],
    loops: Sequence[int],
    *,
    batch_size: int = 64,
    label: str = "model",
    progress: bool = False,
) -> LoopCurve:
    """Measure how often the model's most likely token is the labelled one, at several loop counts.

    Labels follow transformers' convention: the token at position t is predicted from the positions before it, and
    -100 marks a token that is not scored. The answers are predicted with the right tokens before them (teacher
    forcing). Rows of one batch are padded on the right, which a causal model cannot see.

    Args:
        model (`PreTrainedModel`): a causal language model with loops.
        dataset (`Dataset` or a sequence of mappings): rows with `input_ids` and `labels`, and optionally
            `attention_mask`, each of the row's length.
        loops (`Sequence[int]`): the loop counts.
        batch_size (`int`, *optional*, defaults to 64): rows in one forward pass.
        label (`str`, *optional*, defaults to `"model"`): the curve's name.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Returns:
        `LoopCurve`: `values` holds the share of rows whose **last** scored token is right, `sequence_accuracy` the
        share of rows in which every scored token is, `guessing` that of the most frequent last token. The first two
        are NaN at a loop count where the model computes NaN.

    Raises:
        ValueError: if the model is no causal language model with loops, a loop count is not a positive integer, there
            are no rows, or a row has nothing to score.
    """
    trained = trained_loops(model)
    loops = sorted(check_loops(loops))
    batch_size = check_positive_int("batch_size", batch_size)
    if len(dataset) == 0:
        raise ValueError("dataset is empty; there is nothing to measure")
    batches = list(padded_batches(dataset, batch_size))
    last_correct, all_correct = dict.fromkeys(loops, 0.0), dict.fromkeys(loops, 0.0)
    with evaluation_mode(model), tqdm(total=len(loops) * len(batches), disable=not progress, desc=label) as bar:
        for num_loops in loops:
            for batch in batches:
                last, every = _count_correct(model, batch, num_loops)
                last_correct[num_loops] += last
                all_correct[num_loops] += every
                bar.update()
    return LoopCurve(
        metric="accuracy",
        label=label,
        num_loops=loops,
        values=[last_correct[count] / len(dataset) for count in loops],
        trained_loops=trained,
        sequence_accuracy=[all_correct[count] / len(dataset) for count in loops],
        guessing=_share_of_the_most_frequent_answer(batches),
    )


def _share_of_the_most_frequent_answer(batches: list[dict[str, torch.Tensor]]) -> float:
    answers: Counter[int] = Counter()
    for batch in batches:
        for row in batch["labels"]:
            answers[int(row[row != IGNORE_INDEX][-1])] += 1
    return max(answers.values()) / answers.total()


def padded_batches(
    dataset: Dataset | Sequence[Mapping[str, Any]], batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of rows, padded on the right: `input_ids`, `attention_mask` and `labels`, `[B, T]` each.

    Raises:
        ValueError: if a row has nothing to score.
    """
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        input_ids = [torch.as_tensor(row["input_ids"]) for row in rows]
        labels = [torch.as_tensor(row["labels"]) for row in rows]
        masks = [
            torch.as_tensor(row["attention_mask"]) if "attention_mask" in row else torch.ones_like(ids)
            for row, ids in zip(rows, input_ids, strict=True)
        ]
        for index, row_labels in enumerate(labels, start):
            # the first token has nothing before it to be predicted from
            if not (row_labels[1:] != IGNORE_INDEX).any():
                raise ValueError(f"Row {index} of dataset has no labelled token after the first; nothing to score")
        pad = torch.nn.utils.rnn.pad_sequence
        yield {
            "input_ids": pad(input_ids, batch_first=True),
            "attention_mask": pad(masks, batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }


def _count_correct(model: PreTrainedModel, batch: dict[str, torch.Tensor], num_loops: int) -> tuple[float, float]:
    """Count the rows of the batch whose last scored token is right, and the rows in which all are; NaN without logits
    that could be compared."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], num_loops=num_loops, use_cache=False
    ).logits
    # the largest of them would be taken for an answer
    if logits.isnan().any():
        return math.nan, math.nan
    labels = batch["labels"][:, 1:]
    scored = labels != IGNORE_INDEX
    correct = (logits[:, :-1].argmax(-1) == labels) | ~scored
    last_scored = scored.shape[1] - 1 - scored.flip(1).int().argmax(1)
    last = correct.gather(1, last_scored[:, None])
    return float(last.sum()), float(correct.all(1).sum())
