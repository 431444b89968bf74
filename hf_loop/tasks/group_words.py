"""Word problems over finite groups: the product of the letters read so far, asked after every letter.

A word over S3, whose elements rearrange three things. A letter 213 lets the first two change places; 231 puts the
second thing first, the third second and the first third:

    text        <bos>  213    231    213
    labels      -100   -100   213    132    321

The labels are aligned as transformers has them: after `213` the product so far is asked, which is 213, after `231` it
is 213 * 231 = 132. The products are asked but not told, and the last one is the answer. Of "The Illusion of State"
(https://huggingface.co/papers/2404.08819): S5 and A5 are not solvable, and no transformer of a fixed depth multiplies
words of every length over them unless TC0 = NC1; Z60 has as many elements as A5 and is abelian. A depth that grows
with the logarithm of the length is enough for all (https://huggingface.co/papers/2503.03961).
"""

import random
from collections.abc import Sequence
from itertools import combinations, count, permutations
from typing import Literal, get_args

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


GroupName = Literal["S3", "S5", "A5", "Z60"]
Letters = Literal["all", "generators"]

# the split is drawn among so many beginnings of words, or more: one in eight of them is for testing
MIN_BEGINNINGS = 1000

# of Z60 the elements of orders 5, 4 and 3; of the others a cycle and a permutation of two or three things
GENERATORS = {"S3": ("213", "231"), "S5": ("21345", "23451"), "A5": ("23145", "23451"), "Z60": ("12", "15", "20")}
DEFAULT_LETTERS: dict[str, Letters] = {"S3": "all", "S5": "generators", "A5": "generators", "Z60": "all"}


@plain_counts
def group_words(
    num_train: int,
    num_test: int,
    difficulty: int = 16,
    *,
    group: GroupName = "S3",
    letters: Letters | None = None,
    min_difficulty: int = 8,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate word problems over a group: `"213 231"` is answered by `"132"`.

    The difficulty is the number of letters of a word. Since every beginning of a word is asked for, the first letters
    decide whether a word is for testing: so many that there are at least 1,000 ways to begin (10 of two letters, 7 of
    three, 4 of six, 2 of 60). Shorter words are for training only. So no test word is asked for in training, nor any
    beginning of one that has so many letters.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`]. The test difficulties are by default those that have words for testing.
        group (`str`): `"S3"`, `"S5"`, `"A5"` or `"Z60"`.
        letters (`str`, *optional*): `"all"` draws letters from all elements, `"generators"` from two (of Z60, three)
            that generate the group, which leaves a small model far fewer products to learn. By default S5 and A5 have
            generators, S3 and Z60 all elements.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, and the tokenizer they are made with. The `thoughts` are the products before the last one.

    Raises:
        ValueError: if an argument is out of range or there are not so many words for a split.
    """
    if group not in GENERATORS:
        raise ValueError(f"group must be one of {', '.join(GENERATORS)}, got {group!r}")
    if letters not in (None, *get_args(Letters)):
        raise ValueError(f"letters must be one of {', '.join(get_args(Letters))}, or None, got {letters!r}")
    elements = group_elements(group)
    drawn = elements if (letters or DEFAULT_LETTERS[group]) == "all" else GENERATORS[group]
    num_key_words = next(length for length in count(1) if len(drawn) ** length >= MIN_BEGINNINGS)
    if test_difficulties is None and min_difficulty < num_key_words <= difficulty:
        test_difficulties = range(num_key_words, difficulty + 1)
    products = {(left, right): multiply(group, left, right) for left in elements for right in drawn}

    def draw_row(num_letters: int, rng: random.Random) -> TaskRow:
        word = rng.choices(drawn, k=num_letters)
        states = [word[0]]
        for letter in word[1:]:
            states.append(products[states[-1], letter])
        return TaskRow(word, states[-1:], thoughts=states[:-1], asked=[None, *states], num_key_words=num_key_words)

    tokenizer = word_tokenizer(elements)
    splits = task_splits(
        draw_row,
        tokenizer,
        num_train,
        num_test,
        difficulty,
        min_difficulty=min_difficulty,
        test_difficulties=test_difficulties,
        curriculum=curriculum,
        group_size=group_size,
        seed=seed,
    )
    return splits, tokenizer


def group_elements(group: GroupName) -> list[str]:
    """The elements of a group as words: numbers of Z60; of the others the new order of things, as in `"213"`."""
    if group == "Z60":
        return [str(number) for number in range(60)]
    orders = ["".join(order) for order in permutations("12345"[: int(group[1])])]
    return [order for order in orders if group[0] == "S" or _is_even(order)]


def multiply(group: GroupName, left: str, right: str) -> str:
    """The product of two elements: the things in the order `left`, rearranged as `right` says."""
    if group == "Z60":
        return str((int(left) + int(right)) % 60)
    return "".join(left[int(place) - 1] for place in right)


def _is_even(order: str) -> bool:
    return sum(first > second for first, second in combinations(order, 2)) % 2 == 0
