"""The delayed shell game: the ball is shown in the first block of a text, the swaps are read blocks later.

A task that needs memory and depth. Three cups, blocks of four tokens, three of them, and three swaps:

    text      <bos> ball:2 n3 n0  |  n1 n1 n2 n0  |  1<->2   2<->3   1<->2   ball:2
    labels    -100  -100   ...        ...     ...    ball:2  ball:1  ball:1  ball:2

A model that reads in blocks and keeps nothing but a memory sees the ball in the first block alone: without the memory
it guesses. All swaps are in the last block, since a memory that is updated between swaps could follow the ball itself,
a few swaps in each block; in one block, the number of layer calls bounds how many swaps are followed.

As in the shell game (`state_tracking.py`), the labels ask where the ball is before the first swap and after every one,
the answers in the middle are not in the text, and the last label is the answer that `generate` gives.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers, check_share, draw_codes, ragged_dataset, row_lengths, stretches
from .counts import plain_counts
from .tokenizer import BOS_ID, IGNORE_INDEX, SPECIAL_TOKENS, word_tokenizer


NUM_FILLERS = 8
# words follow the special tokens in the order that `word_tokenizer` is given them: fillers, states, swaps
FIRST_FILLER_ID = len(SPECIAL_TOKENS)
FIRST_STATE_ID = FIRST_FILLER_ID + NUM_FILLERS


@plain_counts
def delayed_shell_game(
    num_train: int,
    num_test: int,
    num_swaps: int = 8,
    *,
    num_cups: int = 3,
    block_size: int = 8,
    min_blocks: int = 2,
    max_blocks: int = 4,
    test_blocks: Sequence[int] = (),
    group_size: int = 64,
    curriculum: float = 0.0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate the delayed shell game: `"ball:2 n3 ... n0 1<->2 2<->3"` is answered by `"ball:1"`.

    With three cups, guessing is right once in three.

    Args:
        num_train (`int`): training rows; games may repeat.
        num_test (`int`): rows of each test split, with distinct games (ball and swaps); none of these games is in the
            training split, whatever the seeds.
        num_swaps (`int`): swaps in a game, which must fit in a block.
        num_cups (`int`): cups, at least 3: two cups leave nothing but one swap to choose.
        block_size (`int`): tokens of a block. The swaps begin where the last block begins.
        min_blocks (`int`): blocks of the shortest training row, at least 2: the ball's and the swaps'.
        max_blocks (`int`): blocks of the longest training row, and of the rows of the split `"test"`.
        test_blocks (`Sequence[int]`): blocks of the rows of further splits, which are named `"test_16"` for 16 blocks.
        group_size (`int`): so many training rows in turn have one length, so that batches need no padding.
        curriculum (`float`): the share of the training rows over which the longest row grows from `min_blocks` to
            `max_blocks`, and games from one swap to `num_swaps`. To take effect the rows must be read in order, with
            `TrainingArguments(train_sampling_strategy="sequential")`.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"`, `"test"` and those of `test_blocks` with
        the columns `prompt` and `answer` (text), `input_ids` and `labels` (of one length in a row, `-100` where there
        is no label) and `difficulty` (the number of swaps), and the tokenizer they are made with.

    Raises:
        ValueError: if an argument is out of range, the swaps do not fit in a block, or there are not so many games for
            testing.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "num_swaps": num_swaps, "group_size": group_size}
    check_integers(sizes, low=1)
    sizes = {"block_size": block_size, "min_blocks": min_blocks, "max_blocks": max_blocks}
    check_integers(sizes | {f"test_blocks[{i}]": count for i, count in enumerate(test_blocks)}, low=2)
    check_integers({"num_cups": num_cups}, low=3)
    check_share("curriculum", curriculum)
    if max_blocks < min_blocks:
        raise ValueError(f"max_blocks must be at least min_blocks={min_blocks}, got {max_blocks}")
    if block_size < num_swaps:
        raise ValueError(f"block_size must be at least num_swaps={num_swaps}, got {block_size}")
    swaps = list(combinations(range(num_cups), 2))
    num_games = num_cups * len(swaps) ** num_swaps
    if num_games > 2**62:
        raise ValueError(f"num_swaps must be lower: there are more than 2 ** 62 games of {num_swaps} swaps")

    fillers = [f"n{i}" for i in range(NUM_FILLERS)]
    states = [f"ball:{cup + 1}" for cup in range(num_cups)]
    tokenizer = word_tokenizer([*fillers, *states, *(f"{left + 1}<->{right + 1}" for left, right in swaps)])
    words = np.array(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), dtype=object)
    rng = np.random.default_rng(seed)

    def rows(split: str, blocks: np.ndarray, lengths: np.ndarray) -> Dataset:
        codes = draw_codes(split, len(blocks), 0, num_games, rng)
        return _rows(codes, blocks, lengths, block_size, num_cups, words, rng)

    blocks = row_lengths(num_train, min_blocks, max_blocks, group_size, curriculum, rng)
    # a group has one number of swaps, like one number of blocks
    progress = np.arange(num_train) // group_size * group_size / num_train
    grown = np.minimum(progress / curriculum, 1.0) if curriculum > 0 else np.ones(num_train)
    lengths = 1 + ((num_swaps - 1) * grown).astype(np.int64)
    splits = DatasetDict({"train": rows("train", blocks, lengths)})
    for name, count in [("test", max_blocks), *((f"test_{count}", count) for count in test_blocks)]:
        splits[name] = rows("test", np.full(num_test, count), np.full(num_test, num_swaps))
    return splits, tokenizer


def _rows(
    codes: np.ndarray,
    blocks: np.ndarray,
    lengths: np.ndarray,
    block_size: int,
    num_cups: int,
    words: np.ndarray,
    rng: np.random.Generator,
) -> Dataset:
    """Lay out the games `codes` of a split: ball and filler in `blocks` - 1 blocks, then the first `lengths` swaps.

    A game is a number: its last digit is the cup of the ball, the others are swaps.
    """
    after = _moves(num_cups)
    input_ids, labels, prompts, answers = [], [], [], []
    for start, stop in stretches(blocks * (lengths.max() + 1) + lengths):
        num_rows, num_fill, num_swaps = stop - start, (blocks[start] - 1) * block_size, lengths[start]
        cups, rest = codes[start:stop] % num_cups, codes[start:stop] // num_cups
        swaps = rest[:, None] // len(after) ** np.arange(num_swaps) % len(after)
        trace = [cups]
        for step in range(num_swaps):
            trace.append(after[swaps[:, step], trace[-1]])
        states = FIRST_STATE_ID + np.stack(trace, axis=1).astype(np.int32)
        ids = np.empty((num_rows, num_fill + num_swaps + 1), dtype=np.int32)
        ids[:, :num_fill] = rng.integers(FIRST_FILLER_ID, FIRST_FILLER_ID + NUM_FILLERS, (num_rows, num_fill))
        ids[:, 0], ids[:, 1] = BOS_ID, states[:, 0]
        ids[:, num_fill:-1], ids[:, -1] = FIRST_STATE_ID + num_cups + swaps, states[:, -1]
        asked = np.full_like(ids, IGNORE_INDEX)
        asked[:, num_fill:] = states
        input_ids.append(ids)
        labels.append(asked)
        prompts += [" ".join(row) for row in words[ids[:, 1:-1]]]
        answers += words[ids[:, -1]].tolist()
    dataset = ragged_dataset({"input_ids": input_ids, "labels": labels})
    dataset = dataset.add_column("prompt", prompts).add_column("answer", answers)
    return dataset.add_column("difficulty", lengths.tolist())


def _moves(num_cups: int) -> np.ndarray:
    """Where each swap takes the ball from each cup: `[swaps, cups]`."""
    swaps = list(combinations(range(num_cups), 2))
    after = np.tile(np.arange(num_cups), (len(swaps), 1))
    for row, (left, right) in zip(after, swaps):
        row[[left, right]] = right, left
    return after
