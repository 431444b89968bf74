"""Two machines in one text, a coin and a shell game, and a question about one of them or about both.

A model can answer with two subroutines that have nothing to do with each other, and each test split needs only one of
them: what a search for modules in a network asks for ("Break It Down", https://huggingface.co/papers/2301.10884). The
moves of the machines are words of their own, in any order. A row about the coin, where the label at a position is what
is predicted from the positions before it:

    text      <bos>  heads  ball:2  1<->2   flip    2<->3   coin?  tails
    labels    -100   -100   -100    -100    ball:1  tails   ball:1 tails

A move is answered by the new state of its own machine. So the model has to follow both machines through the whole
text, since the question comes last; and both have the same text, so that what tells the isolating rows apart is what
is asked of it.
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .coin_flips import COIN
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .shell_game import cup_machine
from .tokenizer import word_tokenizer


MACHINES = (COIN, cup_machine(3))
QUESTIONS = ("coin?", "cups?")


@plain_counts
def two_subroutines(
    num_train: int,
    num_test: int,
    difficulty: int = 8,
    *,
    min_difficulty: int = 4,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    num_isolated: int = 0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate a coin and a shell game in one text.

    Guessing is right half of the time about the coin and once in three about the cups. The states of every beginning
    of a training text are asked for, so that texts for testing are as long as the longest of training, or longer.

    Args:
        num_train (`int`): rows of the split `"train"`, a third about the coin, a third about the cups, and a third
            about both (`coin? cups?`).
        num_test (`int`): rows of each test split: `"test"`, as `"train"`; `"test_a"`, about the coin alone, and
            `"test_b"`, about the cups alone. No game of a test split is in a training split, whatever the seeds.
        difficulty (`int`): the highest difficulty of training rows. It counts the moves, about half of them of each
            machine.
        min_difficulty, curriculum, group_size: as [`task_splits`] takes them.
        test_difficulties (`Sequence[int]`, *optional*): the difficulties of test rows, none below `difficulty`, which
            is the only one by default.
        num_isolated (`int`, *optional*, defaults to 0): rows of the splits `"train_a"` and `"train_b"`, which are to
            `"test_a"` and `"test_b"` what `"train"` is to `"test"`; with 0 there are none. In rows of `_a` nothing is
            labelled that needs the cups, in rows of `_b` nothing that needs the coin.
        seed (`int`): seed of the draw.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits and their tokenizer.

    Raises:
        ValueError: if a size is out of range, a test difficulty is below `difficulty`, or there are not so many games
            for testing.
    """
    check_integers({"num_isolated": num_isolated}, low=0)
    test_difficulties = [difficulty] if test_difficulties is None else test_difficulties
    tokenizer = word_tokenizer(
        [word for machine in MACHINES for word in (*machine.states, *machine.moves)] + list(QUESTIONS)
    )
    sizes: dict[str, Any] = {
        "min_difficulty": min_difficulty,
        "test_difficulties": test_difficulties,
        "curriculum": curriculum,
        "group_size": group_size,
        "seed": seed,
    }
    splits = task_splits(_draw_row, tokenizer, num_train, num_test, difficulty, **sizes)
    if min(test_difficulties) < difficulty:
        raise ValueError(
            f"test_difficulties must be at least difficulty={difficulty}, got {test_difficulties}: the states of "
            "shorter texts are asked for in training"
        )
    for name, machine in (("a", 0), ("b", 1)):
        draw_row = partial(_draw_row, machine=machine)
        isolated = task_splits(draw_row, tokenizer, max(1, num_isolated), num_test, difficulty, **sizes)
        splits[f"test_{name}"] = isolated["test"]
        if num_isolated:
            splits[f"train_{name}"] = isolated["train"]
    return splits, tokenizer


def _draw_row(difficulty: int, rng: random.Random, machine: int | None = None) -> TaskRow:
    """Draw a row about one machine with nothing labelled that needs the other, or about any of the two or both."""
    states = [rng.randrange(len(each.states)) for each in MACHINES]
    prompt = [each.states[state] for each, state in zip(MACHINES, states, strict=True)]
    # nothing is asked at `<bos>` and at the starts
    asked: list[str | None] = [None] * (len(prompt) + 1)
    for _ in range(difficulty):
        moved = rng.randrange(len(MACHINES))
        move = rng.choice(list(MACHINES[moved].moves))
        states[moved] = MACHINES[moved].moves[move][states[moved]]
        prompt.append(move)
        asked.append(MACHINES[moved].states[states[moved]] if machine in (None, moved) else None)
    game = " ".join(prompt)
    about = rng.choice(((0,), (1,), (0, 1))) if machine is None else (machine,)
    answer = [MACHINES[index].states[states[index]] for index in about]
    # the question does not decide the split: a game that is tested with one must not be trained with another
    return TaskRow([*prompt, *(QUESTIONS[index] for index in about)], answer, asked=[*asked, *answer], key=game)
