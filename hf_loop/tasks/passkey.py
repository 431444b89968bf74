"""PassKey with symbols: a key at the start, a long stretch of symbols that mean nothing, and a question at the end.

The small form of the task with which TransformerFAM tests its memory (arXiv 2404.09173, section 4.2). The text is a
whole number of blocks of tokens, so the key stands in the first block and the question in the last:

    <bos> ! 07 31 31 52 ! 14 02 60 ... 33 09 ? 07 31 31 52

The filler is drawn from the symbols of the key, so nothing but the marks `!` tells them apart. The loss is on the
symbols behind `?` alone. A model without memory guesses each of them right once in `num_symbols` times as soon as the
key is out of its reach.
"""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers, check_share, draw_codes, ragged_dataset, row_lengths, stretches
from .counts import plain_counts
from .tokenizer import BOS_ID, IGNORE_INDEX, SPECIAL_TOKENS, word_tokenizer


KEY_MARK, QUESTION_MARK = "!", "?"
# the id of the word that follows the special tokens, which is the first that `word_tokenizer` is given
KEY_ID, QUESTION_ID = len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + 1
FIRST_SYMBOL_ID = QUESTION_ID + 1


@plain_counts
def passkey(
    num_train: int,
    num_test: int,
    min_blocks: int = 2,
    max_blocks: int = 8,
    *,
    block_size: int = 32,
    key_length: int = 4,
    num_symbols: int = 64,
    group_size: int = 32,
    test_blocks: Sequence[int] = (),
    curriculum: float = 0.0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate PassKey: `"! 07 31 31 52 ! 14 ... 09 ?"` is answered by `"07 31 31 52"`.

    Args:
        num_train (`int`): training rows; keys may repeat.
        num_test (`int`): rows of each test split, with distinct keys; none of them is in the training split, whatever
            the seeds.
        min_blocks (`int`): blocks of the shortest training row.
        max_blocks (`int`): blocks of the longest training row, and of the rows of the split `"test"`.
        block_size (`int`): tokens of a block; key and question must fit in one.
        key_length (`int`): symbols of a key.
        num_symbols (`int`): symbols that keys and filler are drawn from.
        group_size (`int`): so many training rows in turn have one length, so that batches need no padding.
        test_blocks (`Sequence[int]`): blocks of the rows of further splits, which are named `"test_16"` for 16 blocks.
        curriculum (`float`): the share of the training rows over which the longest row grows from `min_blocks` to
            `max_blocks`. To take effect the rows must be read in order, with
            `TrainingArguments(train_sampling_strategy="sequential")`.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"`, `"test"` and those of `test_blocks` with
        the columns `prompt` and `answer` (text), `input_ids` and `labels` (of one length in a row, `-100` where there
        is no label) and `difficulty` (the number of blocks), and the tokenizer they are made with.

    Raises:
        ValueError: if an argument is out of range, key and question do not fit in a block, or there are not so many
            keys for testing.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "min_blocks": min_blocks, "max_blocks": max_blocks}
    sizes |= {"block_size": block_size, "key_length": key_length, "group_size": group_size}
    sizes |= {f"test_blocks[{i}]": count for i, count in enumerate(test_blocks)}
    check_integers(sizes, low=1)
    check_integers({"num_symbols": num_symbols}, low=2)
    check_share("curriculum", curriculum)
    if max_blocks < min_blocks:
        raise ValueError(f"max_blocks must be at least min_blocks={min_blocks}, got {max_blocks}")
    # <bos>, the key between its marks, the question and the key again: a row of one block holds all of it
    needed = 2 * key_length + 4
    if block_size < needed:
        raise ValueError(f"block_size must be at least {needed} for keys of {key_length} symbols, got {block_size}")
    if num_symbols**key_length > 2**62:
        raise ValueError(f"num_symbols ** key_length must be at most 2 ** 62, got {num_symbols} ** {key_length}")

    symbols = [f"{i:0{len(str(num_symbols - 1))}d}" for i in range(num_symbols)]
    tokenizer = word_tokenizer([KEY_MARK, QUESTION_MARK, *symbols])
    words = np.array(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), dtype=object)
    rng = np.random.default_rng(seed)
    lengths = row_lengths(num_train, min_blocks, max_blocks, group_size, curriculum, rng)
    keys = _draw_keys("train", num_train, key_length, num_symbols, rng)
    splits = DatasetDict({"train": _rows(keys, lengths, block_size, num_symbols, words, rng)})
    for name, count in [("test", max_blocks), *((f"test_{count}", count) for count in test_blocks)]:
        keys = _draw_keys("test", num_test, key_length, num_symbols, rng)
        splits[name] = _rows(keys, np.full(num_test, count), block_size, num_symbols, words, rng)
    return splits, tokenizer


def _draw_keys(split: str, num_keys: int, key_length: int, num_symbols: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the keys of one split `[num_keys, key_length]`; a key is a number whose digits are its symbols."""
    codes = draw_codes(split, num_keys, 0, num_symbols**key_length, rng)
    return codes[:, None] // num_symbols ** np.arange(key_length) % num_symbols


def _rows(
    keys: np.ndarray,
    lengths: np.ndarray,
    block_size: int,
    num_symbols: int,
    words: np.ndarray,
    rng: np.random.Generator,
) -> Dataset:
    """The rows of one split: stretches of rows of one length are made together."""
    key_length = keys.shape[1]
    input_ids, labels, prompts = [], [], []
    for start, stop in stretches(lengths):
        key_ids = FIRST_SYMBOL_ID + keys[start:stop]
        ids = rng.integers(
            FIRST_SYMBOL_ID, FIRST_SYMBOL_ID + num_symbols, (stop - start, lengths[start] * block_size), dtype=np.int32
        )
        ids[:, 0] = BOS_ID
        ids[:, [1, key_length + 2]] = KEY_ID
        ids[:, 2 : key_length + 2] = key_ids
        ids[:, -key_length - 1] = QUESTION_ID
        ids[:, -key_length:] = key_ids
        input_ids.append(ids)
        labels.append(np.where(np.arange(ids.shape[1]) < ids.shape[1] - key_length, np.int32(IGNORE_INDEX), ids))
        prompts += [" ".join(row) for row in words[ids[:, 1:-key_length]]]
    dataset = ragged_dataset({"input_ids": input_ids, "labels": labels})
    answers = [" ".join(row) for row in words[FIRST_SYMBOL_ID + keys]]
    dataset = dataset.add_column("prompt", prompts).add_column("answer", answers)
    return dataset.add_column("difficulty", lengths.tolist())
