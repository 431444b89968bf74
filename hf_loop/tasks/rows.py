"""What tasks with a difficulty share: drawing difficulties, the split of rows by their content, and making datasets.

A task is a function that draws one row of a difficulty; [`task_splits`] calls it until there are enough rows of each
split. Every row has the columns

- `prompt` and `answer`: text, words separated by spaces;
- `input_ids` and `labels`: of one length in a row. The labels are aligned as transformers has them: the label at a
  position is predicted from the positions before it, and `-100` is not scored. The answer is the last labels of a row.
  Where `labels` and `input_ids` differ, the model is asked but not told;
- `difficulty`: an integer, whose meaning the task explains;
- `thoughts`, of some tasks: the steps that a chain of thought writes between prompt and answer, as text.

A row is for testing if a checksum of its content says so, or one of its first words where every beginning of a row is
asked for. So no test row is in a training split, whatever the seeds, sizes and difficulties of the two are.
A thought may tell the answer of a test row: of a sum of three numbers it is the sum of two.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import TEST_SHARE, check_integers, check_share, row_lengths
from .tokenizer import BOS_TOKEN, IGNORE_INDEX


# give up after this many draws in a row without a row that can be used
MAX_TRIES = 10_000


@dataclass(frozen=True, slots=True)
class TaskRow:
    """The words of a row.

    Args:
        prompt (`Sequence[str]`): what the model is given, without `<bos>`.
        answer (`Sequence[str]`): what it is to answer.
        thoughts (`Sequence[str]`, *optional*): the steps between the two, for a chain of thought.
        asked (`Sequence[str | None]`, *optional*): for a row that asks in the prompt already: what is to be predicted
            at `<bos>` and at each word of the prompt, `None` for nothing. Its last words are the answer, of which the
            text has nothing but the last word. By default nothing is asked before the prompt ends, and each word of
            the answer is told when the next one is asked.
        key (`str`, *optional*): what decides whether the row is for testing, and whether two test rows are equal; the
            prompt by default.
        num_key_words (`int`, *optional*): for a row that asks after every word: the first so many words of the prompt
            alone decide whether the row is for testing, and shorter rows are for training. So no beginning of a test
            row that is as long is asked for in training.
        columns (`Mapping[str, Any]`): further columns.
    """

    prompt: Sequence[str]
    answer: Sequence[str]
    thoughts: Sequence[str] | None = None
    asked: Sequence[str | None] | None = None
    key: str | None = None
    num_key_words: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> str:
        """What identifies the row."""
        return " ".join(self.prompt) if self.key is None else self.key

    def is_for_testing(self) -> bool:
        """Whether the row belongs to the test split: a function of its content alone."""
        if self.num_key_words is None:
            return is_test_content(self.content())
        if len(self.prompt) < self.num_key_words:
            return False
        return is_test_content(" ".join(self.prompt[: self.num_key_words]))


def task_splits(
    draw_row: Callable[[int, random.Random], TaskRow],
    tokenizer: PreTrainedTokenizerFast,
    num_train: int,
    num_test: int,
    difficulty: int,
    *,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
    max_difficulty: int | None = None,
    keep_apart: bool = True,
) -> DatasetDict:
    """Draw training and test rows.

    Args:
        draw_row (`Callable`): draws a [`TaskRow`] of a difficulty with a `random.Random`.
        tokenizer (`PreTrainedTokenizerFast`): one of [`word_tokenizer`] with every word of every row.
        num_train (`int`): training rows; rows may repeat. Their difficulties are uniform from `min_difficulty` to
            `difficulty`.
        num_test (`int`): test rows, distinct; none of them is in the training split, whatever the seeds. As many of
            each of `test_difficulties`, or one fewer, in ascending order.
        difficulty (`int`): the highest difficulty of training rows.
        min_difficulty (`int`): the lowest.
        test_difficulties (`Sequence[int]`, *optional*): the difficulties of test rows, which may lie beyond those of
            training; all from `min_difficulty` to `difficulty` by default.
        curriculum (`float`): the share of the training rows, from the first on, over which the highest difficulty
            grows evenly from `min_difficulty` to `difficulty`. To take effect the rows must be read in order, with
            `TrainingArguments(train_sampling_strategy="sequential")`.
        group_size (`int`): so many training rows in turn have one difficulty.
        seed (`int`): seed of the draw; the same seed gives the same rows.
        max_difficulty (`int`, *optional*): the highest difficulty there is.
        keep_apart (`bool`): whether test rows are none of training; `False` for facts that are to be memorized.

    Returns:
        `DatasetDict`: the splits `"train"` and `"test"`.

    Raises:
        ValueError: if an argument is out of range, or there are not so many rows for a split.
    """
    check_integers({"num_train": num_train, "num_test": num_test, "group_size": group_size}, low=1)
    check_share("curriculum", curriculum)
    levels = _levels(difficulty, min_difficulty, test_difficulties, max_difficulty)
    # generators of their own, so that a split does not depend on the size of the other
    draw_train, draw_test = (random.Random(f"{split} {seed}") for split in ("train", "test"))
    lengths = row_lengths(
        num_train,
        min_difficulty,
        difficulty,
        group_size,
        curriculum,
        np.random.default_rng(draw_train.getrandbits(64)),
    ).tolist()
    train = [_training_row(draw_row, level, draw_train, keep_apart) for level in lengths]
    share, rest = divmod(num_test, len(levels))
    wanted = [level for i, level in enumerate(levels) for _ in range(share + (i < rest))]
    test = _test_rows(draw_row, wanted, draw_test, keep_apart)
    return DatasetDict(
        {"train": task_dataset(train, lengths, tokenizer), "test": task_dataset(test, wanted, tokenizer)}
    )


def is_test_content(content: str) -> bool:
    """Whether a row belongs to the test split: a function of its content alone. About one in eight does."""
    # a cryptographic hash: the bits of a cyclic checksum are sums of bits of the text, as answers may be
    return hashlib.blake2b(content.encode(), digest_size=8).digest()[0] % TEST_SHARE == 0


def task_dataset(rows: Sequence[TaskRow], difficulties: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Make the columns of rows, see the head of this module.

    Args:
        rows (`Sequence[TaskRow]`): at least one.
        difficulties (`Sequence[int]`): the difficulty of each row.
        tokenizer (`PreTrainedTokenizerFast`): one of [`word_tokenizer`] with every word of every row.

    Raises:
        ValueError: if what a row asks does not fit its prompt and answer.
    """
    ids: dict[str | None, int] = {**tokenizer.get_vocab(), None: IGNORE_INDEX}
    columns: dict[str, list] = {"prompt": [], "answer": [], "input_ids": [], "labels": [], "difficulty": []}
    columns |= {"thoughts": []} if rows[0].thoughts is not None else {}
    columns |= {name: [] for name in rows[0].columns}
    for row, difficulty in zip(rows, difficulties, strict=True):
        if row.asked is None:
            told, asked = row.answer, [None] * len(row.prompt) + list(row.answer)
        else:
            told, asked = row.answer[-1:], row.asked
            if len(asked) != len(row.prompt) + 1:
                raise ValueError(f"asked must have {len(row.prompt) + 1} words, one more than the prompt, got {asked}")
            if [word for word in asked if word is not None][-len(row.answer) :] != list(row.answer):
                raise ValueError(f"asked must end with the answer {row.answer}, got {asked}")
        columns["prompt"].append(" ".join(row.prompt))
        columns["answer"].append(" ".join(row.answer))
        columns["input_ids"].append([ids[word] for word in (BOS_TOKEN, *row.prompt, *told)])
        columns["labels"].append([ids[word] for word in (None, *asked)])
        columns["difficulty"].append(difficulty)
        if row.thoughts is not None:
            columns["thoughts"].append(" ".join(row.thoughts))
        for name, value in row.columns.items():
            columns[name].append(value)
    return Dataset.from_dict(columns)


def _levels(
    difficulty: int, min_difficulty: int, test_difficulties: Sequence[int] | None, max_difficulty: int | None
) -> list[int]:
    """The difficulties of test rows, ascending."""
    values = {"difficulty": difficulty, "min_difficulty": min_difficulty}
    check_integers(values, low=1)
    if difficulty < min_difficulty:
        raise ValueError(f"difficulty must be at least min_difficulty={min_difficulty}, got {difficulty}")
    if test_difficulties is None:
        test_difficulties = range(min_difficulty, difficulty + 1)
    if not test_difficulties or len(set(test_difficulties)) < len(test_difficulties):
        raise ValueError(f"test_difficulties must be distinct, and at least one, got {test_difficulties!r}")
    values |= {f"test_difficulties[{i}]": level for i, level in enumerate(test_difficulties)}
    check_integers(values, low=1)
    for name, value in values.items():
        if max_difficulty is not None and value > max_difficulty:
            raise ValueError(f"{name} must be at most {max_difficulty}, got {value}")
    return sorted(test_difficulties)


def _training_row(
    draw_row: Callable[[int, random.Random], TaskRow], difficulty: int, rng: random.Random, keep_apart: bool
) -> TaskRow:
    for _ in range(MAX_TRIES):
        row = draw_row(difficulty, rng)
        if not (keep_apart and row.is_for_testing()):
            return row
    raise ValueError(f"difficulty must be another than {difficulty}: all rows of it are for testing")


def _test_rows(
    draw_row: Callable[[int, random.Random], TaskRow],
    difficulties: Sequence[int],
    rng: random.Random,
    keep_apart: bool,
) -> list[TaskRow]:
    rows: dict[str, TaskRow] = {}
    for difficulty in difficulties:
        for _ in range(MAX_TRIES):
            row = draw_row(difficulty, rng)
            content = row.content()
            if content not in rows and (row.is_for_testing() or not keep_apart):
                rows[content] = row
                break
        else:
            found = difficulties[: len(rows)].count(difficulty)
            raise ValueError(
                f"num_test must be lower, or test_difficulties without {difficulty}: of that difficulty "
                f"{difficulties.count(difficulty)} distinct test rows are wanted, and {found} were found"
            )
    return list(rows.values())
