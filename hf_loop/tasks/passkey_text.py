"""PassKey as text: a number at the start, filler that says nothing, and the question for the number at the end.

The wording is that of TransformerFAM (arXiv 2404.09173, figure 10), which puts the key before all of the filler. The
filler repeats the sentences of Landmark Attention (arXiv 2305.16300), where the task comes from.
"""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from .blocks import check_integers, check_share, draw_codes, ragged_dataset, row_lengths
from .counts import plain_counts
from .tokenizer import IGNORE_INDEX


INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there. "
    "The pass key is {key}. Remember it. {key} is the pass key."
)


FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = " What is the pass key? The pass key is"


@plain_counts
def passkey_text(
    num_train: int,
    num_test: int,
    tokenizer: PreTrainedTokenizerBase,
    min_filler: int = 2_000,
    max_filler: int = 18_000,
    *,
    key_digits: int = 5,
    group_size: int = 1,
    test_filler: Sequence[int] = (),
    curriculum: float = 0.0,
    seed: int = 0,
) -> DatasetDict:
    """Generate PassKey as text, in tokens of `tokenizer`.

    Introduction, filler, question and answer are tokenized on their own and joined, and the filler is cut after the
    wanted number of tokens, wherever that falls.

    Args:
        num_train (`int`): training rows; keys may repeat. All of them are made at once: a thousand rows of 18,000
            tokens take 150 MB.
        num_test (`int`): rows of each test split, with distinct keys; none of them is in the training split, whatever
            the seeds.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer of the model. Its first token is put in front where it has
            one (`bos_token`).
        min_filler (`int`): tokens of the shortest filler in training.
        max_filler (`int`): tokens of the longest filler in training, and of the split `"test"`.
        key_digits (`int`): digits of a key, which does not begin with 0.
        group_size (`int`): so many training rows in turn have fillers of one length. Rows differ in length then only
            if `tokenizer` does not give every key as many tokens.
        test_filler (`Sequence[int]`): tokens of filler of further splits, which are named `"test_64000"` for 64,000
            tokens.
        curriculum (`float`): the share of the training rows over which the longest filler grows from `min_filler` to
            `max_filler`. To take effect the rows must be read in order, with
            `TrainingArguments(train_sampling_strategy="sequential")`.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `DatasetDict`: the splits `"train"`, `"test"` and those of `test_filler` with the columns `input_ids` and
        `labels` (`-100` everywhere but on the key behind the question), `answer` (the key as text) and `difficulty`
        (the tokens of filler).

    Raises:
        ValueError: if an argument is out of range, or there are not so many keys for testing.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "min_filler": min_filler, "max_filler": max_filler}
    sizes |= {"key_digits": key_digits, "group_size": group_size}
    check_integers(sizes | {f"test_filler[{i}]": count for i, count in enumerate(test_filler)}, low=1)
    check_share("curriculum", curriculum)
    if max_filler < min_filler:
        raise ValueError(f"max_filler must be at least min_filler={min_filler}, got {max_filler}")
    if key_digits > 18:
        raise ValueError(f"key_digits must be at most 18, got {key_digits}")

    rng = np.random.default_rng(seed)
    low, high = 10 ** (key_digits - 1), 10**key_digits
    lengths = row_lengths(num_train, min_filler, max_filler, group_size, curriculum, rng)
    splits = DatasetDict({"train": _rows(draw_codes("train", num_train, low, high, rng), lengths, tokenizer)})
    for name, count in [("test", max_filler), *((f"test_{count}", count) for count in test_filler)]:
        keys = draw_codes("test", num_test, low, high, rng)
        splits[name] = _rows(keys, np.full(num_test, count), tokenizer)
    return splits


def _rows(keys: np.ndarray, lengths: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    sentences, question = _encode(tokenizer, [FILLER, QUESTION])
    filler = np.resize(np.array(sentences, dtype=np.int32), lengths.max())
    introductions = _encode(tokenizer, [INTRODUCTION.format(key=key) for key in keys])
    answers = _encode(tokenizer, [f" {key}" for key in keys])
    input_ids, labels = [], []
    for introduction, length, answer in zip(introductions, lengths, answers):
        row = np.concatenate([start + introduction, filler[:length], question + answer]).astype(np.int32)
        input_ids.append(row[None])
        labels.append(np.where(np.arange(len(row)) < len(row) - len(answer), np.int32(IGNORE_INDEX), row)[None])
    dataset = ragged_dataset({"input_ids": input_ids, "labels": labels})
    return dataset.add_column("answer", [str(key) for key in keys]).add_column("difficulty", lengths.tolist())


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
