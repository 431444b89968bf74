"""Tasks of the package reasoning-gym (https://github.com/open-thought/reasoning-gym) as rows with a difficulty.

It has a hundred generators of questions with answers that can be checked: arithmetic, graphs, games, programs, logic.
Of each this takes those questions that have one answer, as text for a tokenizer of the reader's choice.
"""

import random
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from .blocks import check_integers
from .counts import plain_counts, whole_number
from .rows import is_test_content
from .tokenizer import IGNORE_INDEX


# generators are asked for so many questions for each row that is wanted; one in eight is for testing
MAX_DRAWS_PER_ROW = 100


@plain_counts
def reasoning_gym_task(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    num_train: int,
    num_test: int,
    *,
    difficulty_key: str,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> DatasetDict:
    """Generate the rows of a task of reasoning-gym.

    Whether a question is for training or for testing depends on its text alone. So test rows that are drawn with other
    `settings`, such as more terms, are in no training split either.

    Args:
        name (`str`): the task, such as `"chain_sum"`, `"path_star"` or `"bf"`.
        tokenizer (`PreTrainedTokenizerBase`): makes tokens of the question and of its answer.
        num_train (`int`): training rows; rows may repeat.
        num_test (`int`): test rows, distinct, the easiest first.
        difficulty_key (`str`): the entry of a question's metadata that is its difficulty, such as `"num_terms"` of
            `chain_sum`; an integer.
        settings (`Mapping[str, Any]`, *optional*): settings of the task, such as `{"min_terms": 2, "max_terms": 8}`.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `DatasetDict`: the splits `"train"` and `"test"` with the columns `prompt`, `answer`, `input_ids`, `labels` and
        `difficulty`. The text is the question, a line break and the answer, behind the tokenizer's token for the
        beginning if it has one; the labels are the tokens of the answer, however many it has.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if there is no such task, setting or entry, a question has no single answer, or there are not so
            many questions for a split.
    """
    check_integers({"num_train": num_train, "num_test": num_test}, low=1)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    wanted = {"train": num_train, "test": num_test}
    tested: set[str] = set()
    size = MAX_DRAWS_PER_ROW * (num_train + num_test)
    for question in _questions(name, settings or {}, size, seed):
        prompt = question["question"]
        split = "test" if is_test_content(prompt) else "train"
        if len(rows[split]) < wanted[split] and prompt not in tested:
            rows[split].append(_row(name, question, difficulty_key, tokenizer))
            if split == "test":
                tested.add(prompt)
        if all(len(rows[other]) == count for other, count in wanted.items()):
            break
    for split, count in wanted.items():
        if len(rows[split]) < count:
            raise ValueError(
                f"num_{split} must be at most {len(rows[split])}, all that {size} questions of {name} have for it, "
                f"got {count}"
            )
    rows["test"].sort(key=lambda row: row["difficulty"])
    return DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()})


def _questions(name: str, settings: Mapping[str, Any], size: int, seed: int) -> Iterator[dict[str, Any]]:
    try:
        # by name, so that types can be checked where it is not installed
        reasoning_gym = import_module("reasoning_gym")
    except ImportError as error:
        raise ImportError(
            "reasoning_gym_task needs the package reasoning-gym; install it with `pip install 'hf-loop[reasoning]'`"
        ) from error
    # question i of a seed is made with the sum of both: neighbouring seeds would have nearly all questions in common
    first = random.Random(f"reasoning_gym {seed}").getrandbits(60)
    try:
        return iter(reasoning_gym.create_dataset(name, size=size, seed=first, **settings))
    except (AssertionError, TypeError, ValueError) as error:
        # how the package refuses names and settings
        raise ValueError(
            f"name and settings must be those of a task of reasoning-gym, got {name!r} and {settings}: {error}"
        ) from error


def _row(name: str, question: Mapping[str, Any], difficulty_key: str, tokenizer: PreTrainedTokenizerBase) -> dict:
    prompt, answer, metadata = question["question"], question["answer"], question["metadata"]
    difficulty = whole_number(metadata.get(difficulty_key))
    if difficulty is None:
        counts = [key for key, value in metadata.items() if whole_number(value) is not None and key != "source_index"]
        raise ValueError(
            f"difficulty_key must be an integer in the metadata of {name}, such as {', '.join(counts) or 'none'}, "
            f"got {difficulty_key!r}"
        )
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"name must be a task whose questions have one answer, got {name!r}, answer {answer!r}")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    # apart, so that no token spans the question and its answer
    asked, told = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f"{prompt}\n", answer))
    return {
        "prompt": prompt,
        "answer": answer,
        "input_ids": [*start, *asked, *told],
        "labels": [IGNORE_INDEX] * (len(start) + len(asked)) + list(told),
        "difficulty": difficulty,
    }
