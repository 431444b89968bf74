"""Associative recall in blocks: pairs are written block by block, some are overwritten, and the last block asks.

A key is written with a value; a later block may write it again with another value, and the last one wins. Two blocks
of writing and one of questions, where `.` fills up a block:

    <bos> k3 v1 k0 v7 .  |  . k5 v2 k3 v4 .  |  . . ? k3 v4 k0 v7

The loss is on the values behind `?` alone. Every value is predicted at its own key, so a question can be answered in
one pass over the last block from nothing but the memory of what came before. A model that keeps what it has read must
also let go of what was overwritten.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers, check_share, draw_split, ragged_dataset, row_lengths, stretches
from .counts import plain_counts
from .tokenizer import BOS_ID, IGNORE_INDEX, SPECIAL_TOKENS, word_tokenizer


FILL, QUESTION = ".", "?"
# words follow the special tokens in the order that `word_tokenizer` is given them
FILL_ID, QUESTION_ID = len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 1
FIRST_KEY_ID = QUESTION_ID + 1
COLUMNS = ("input_ids", "labels", "distances", "updated")


@plain_counts
def associative_recall(
    num_train: int,
    num_test: int,
    min_blocks: int = 2,
    max_blocks: int = 4,
    *,
    block_size: int = 32,
    pairs_per_block: int = 4,
    update_share: float = 0.5,
    num_queries: int = 4,
    num_keys: int = 64,
    num_values: int = 64,
    group_size: int = 32,
    test_blocks: Sequence[int] = (),
    curriculum: float = 0.0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate associative recall with updates.

    Args:
        num_train (`int`): training rows; rows may repeat.
        num_test (`int`): rows of each test split, none of which is in the training split, whatever the seeds.
        min_blocks (`int`): blocks of the shortest training row, at least 2: one of pairs and the one of questions.
        max_blocks (`int`): blocks of the longest training row, and of the rows of the split `"test"`.
        block_size (`int`): tokens of a block. A block is a window for a model that works in windows.
        pairs_per_block (`int`): pairs that each block but the last writes, with keys that differ.
        update_share (`float`): the share of the pairs of each block, from the second on, that overwrite a key of an
            earlier block with another value; rounded to whole pairs.
        num_queries (`int`): keys that the last block asks for, drawn from all that were written.
        num_keys (`int`): words for keys; as many as the longest row needs, or more.
        num_values (`int`): words for values.
        group_size (`int`): so many training rows in turn have one length, so that batches need no padding.
        test_blocks (`Sequence[int]`): blocks of the rows of further splits, which are named `"test_16"` for 16 blocks.
        curriculum (`float`): the share of the training rows over which the longest row grows from `min_blocks` to
            `max_blocks`. To take effect the rows must be read in order, with
            `TrainingArguments(train_sampling_strategy="sequential")`.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"`, `"test"` and those of `test_blocks`, and
        the tokenizer they are made with. Columns: `input_ids` and `labels` (`-100` where there is no label); and for
        the questions of a row, in order, `distances` (blocks between the question and the last time its key was
        written) and `updated` (whether that was not the first time). The `difficulty` is the number of blocks.

    Raises:
        ValueError: if an argument is out of range, the pairs or the questions do not fit in a block, or the longest
            row needs more keys than there are.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "block_size": block_size, "group_size": group_size}
    check_integers(sizes | {"pairs_per_block": pairs_per_block, "num_queries": num_queries}, low=1)
    further = {f"test_blocks[{i}]": count for i, count in enumerate(test_blocks)}
    blocks = {"min_blocks": min_blocks, "max_blocks": max_blocks, **further}
    check_integers(blocks | {"num_keys": num_keys, "num_values": num_values}, low=2)
    check_share("update_share", update_share)
    check_share("curriculum", curriculum)
    if max_blocks < min_blocks:
        raise ValueError(f"max_blocks must be at least min_blocks={min_blocks}, got {max_blocks}")
    layout = _Layout(
        block_size, pairs_per_block, round(update_share * pairs_per_block), num_queries, num_keys, num_values
    )
    layout.check(max(blocks.values()))

    tokenizer = word_tokenizer([FILL, QUESTION, *_words("k", num_keys), *_words("v", num_values)])
    rng = np.random.default_rng(seed)
    lengths = row_lengths(num_train, min_blocks, max_blocks, group_size, curriculum, rng)
    splits = DatasetDict({"train": _split("train", lengths, layout, rng)})
    for name, count in [("test", max_blocks), *((f"test_{count}", count) for count in test_blocks)]:
        splits[name] = _split("test", np.full(num_test, count), layout, rng)
    return splits, tokenizer


def recall_accuracy(predictions: np.ndarray, rows: Dataset) -> list[dict[str, float | int | bool]]:
    """Compute the share of right answers by distance and by whether the key was overwritten.

    Args:
        predictions (`np.ndarray`): `[rows, num_queries]`: the token predicted for each value asked for, in order.
        rows (`Dataset`): rows of a split of [`associative_recall`], in the same order.

    Returns:
        `list[dict]`: with `distance`, `updated`, `num_questions` and `accuracy`, sorted by the first two.

    Raises:
        ValueError: if there are not as many predictions as questions.
    """
    distances, updated = np.array(rows["distances"]), np.array(rows["updated"])
    labels = np.array([[label for label in row if label != IGNORE_INDEX] for row in rows["labels"]])
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions must have the shape {labels.shape} of the questions, got {predictions.shape}")
    table = []
    for distance, was_updated in sorted(set(zip(distances.ravel().tolist(), updated.ravel().tolist()))):
        chosen = (distances == distance) & (updated == was_updated)
        accuracy = float((predictions == labels)[chosen].mean())
        table.append(
            {"distance": distance, "updated": was_updated, "num_questions": int(chosen.sum()), "accuracy": accuracy}
        )
    return table


@dataclass(frozen=True)
class _Layout:
    """How a row is laid out; the fields are explained at [`associative_recall`]."""

    block_size: int
    pairs_per_block: int
    updates_per_block: int
    num_queries: int
    num_keys: int
    num_values: int

    def num_written(self, num_blocks: int) -> int:
        """Count the keys that a row of `num_blocks` blocks has written when it asks."""
        return self.pairs_per_block + (num_blocks - 2) * (self.pairs_per_block - self.updates_per_block)

    def check(self, max_blocks: int) -> None:
        # the first block has <bos> beside its pairs, and the last one the mark of the questions
        needed = 2 * max(self.pairs_per_block, self.num_queries) + 1
        if self.block_size < needed:
            raise ValueError(
                f"block_size must be at least {needed} for pairs_per_block={self.pairs_per_block} and "
                f"num_queries={self.num_queries}, got {self.block_size}"
            )
        if self.num_queries > self.pairs_per_block:
            raise ValueError(
                f"num_queries must be at most pairs_per_block={self.pairs_per_block}, the keys that the shortest row "
                f"may have, got {self.num_queries}"
            )
        if self.num_keys < self.num_written(max_blocks):
            raise ValueError(
                f"num_keys must be at least {self.num_written(max_blocks)}, the keys of a row of {max_blocks} "
                f"blocks, got {self.num_keys}"
            )


def _words(letter: str, count: int) -> list[str]:
    return [f"{letter}{i}" for i in range(count)]


def _split(split: str, lengths: np.ndarray, layout: _Layout, rng: np.random.Generator) -> Dataset:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    for start, stop in stretches(lengths):
        num_blocks = int(lengths[start])
        rows = draw_split(
            split, stop - start, lambda count, num_blocks=num_blocks: _draw(count, num_blocks, layout, rng)
        )
        for name, part in rows.items():
            columns[name].append(part)
    return ragged_dataset(columns).add_column("difficulty", lengths.tolist())


def _draw(num_rows: int, num_blocks: int, layout: _Layout, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw rows of one length, whichever split they belong to."""
    size, num_pairs = layout.block_size, layout.pairs_per_block
    num_written = layout.num_written(num_blocks)
    ids = np.full((num_rows, num_blocks, size), FILL_ID, dtype=np.int32)
    ids[:, 0, 0] = BOS_ID
    # keys by the order in which they are first written, and for each its value and the block it was last written in
    keys = _choose(num_rows, layout.num_keys, num_written, rng)
    values = rng.integers(layout.num_values, size=(num_rows, num_written))
    last_block = np.zeros((num_rows, num_written), dtype=np.int64)
    updated = np.zeros((num_rows, num_written), dtype=bool)
    num_known = 0
    for block in range(num_blocks - 1):
        num_updates = layout.updates_per_block if block else 0
        num_new = num_pairs - num_updates
        old = _choose(num_rows, num_known, num_updates, rng)
        new = np.broadcast_to(np.arange(num_known, num_known + num_new), (num_rows, num_new))
        # another value than before: a step of 1 to num_values - 1 around the circle of values
        steps = rng.integers(1, layout.num_values, size=old.shape)
        np.put_along_axis(values, old, (np.take_along_axis(values, old, 1) + steps) % layout.num_values, 1)
        np.put_along_axis(updated, old, True, 1)
        written = rng.permuted(np.concatenate([old, new], 1), axis=1)
        np.put_along_axis(last_block, written, block, 1)
        ids[:, block, 1 : 2 * num_pairs + 1] = _pairs(keys, values, written, layout)
        num_known += num_new
    asked = _choose(num_rows, num_written, layout.num_queries, rng)
    ids[:, -1, -2 * layout.num_queries - 1] = QUESTION_ID
    ids[:, -1, -2 * layout.num_queries :] = _pairs(keys, values, asked, layout)
    input_ids = ids.reshape(num_rows, num_blocks * size)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    answers = slice(-2 * layout.num_queries + 1, None, 2)
    labels[:, answers] = input_ids[:, answers]
    return {
        "input_ids": input_ids,
        "labels": labels,
        "distances": num_blocks - 1 - np.take_along_axis(last_block, asked, 1),
        "updated": np.take_along_axis(updated, asked, 1),
    }


def _choose(num_rows: int, num_choices: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """For each row, `count` distinct numbers below `num_choices` in random order."""
    return rng.random((num_rows, num_choices)).argsort(axis=1)[:, :count]


def _pairs(keys: np.ndarray, values: np.ndarray, chosen: np.ndarray, layout: _Layout) -> np.ndarray:
    """The tokens of the chosen keys and their values, in turn: `[rows, 2 * chosen]`."""
    key_ids = FIRST_KEY_ID + np.take_along_axis(keys, chosen, 1)
    value_ids = FIRST_KEY_ID + layout.num_keys + np.take_along_axis(values, chosen, 1)
    return np.stack([key_ids, value_ids], axis=2).reshape(len(keys), -1)
