"""Elementary cellular automata: a ring of bits, and what becomes of it after some steps, asked for every cell at once.

Two steps of Rule 30 from a ring of four bits, one of which is 1. It becomes `0 1 1 1`, and then `0 1 0 0`:

    text      <bos>  >     >     0     0     1     0     ?     ?     ?     ?     0
    labels    -100   -100  -100  -100  -100  -100  -100  -100  0     1     0     0

Each mark `>` in front stands for a step, so that more steps than in training need no new word. The labels are aligned
as transformers has them: at the first `?` the first cell is asked for, which is not told when the next one is asked.
After t steps a cell depends on 2 t + 1 cells. Rule 30 is chaotic, Rule 110 computes whatever can be computed; of
neither is a shortcut known. A looped model that has seen up to 6 steps answers 12
(https://huggingface.co/papers/2609.19521).
"""

import random
from collections.abc import Sequence

import numpy as np
from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


STEP, CELL = ">", "?"
BITS = "01"


@plain_counts
def cellular_automaton(
    num_train: int,
    num_test: int,
    difficulty: int = 6,
    *,
    rule: int = 30,
    state_size: int = 16,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate states of a cellular automaton: `"> 0 0 1 0 ? ? ? ?"` is answered by `"0 1 1 1"`.

    The difficulty is the number of steps.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].
        rule (`int`): Wolfram's number of the automaton, 0 to 255 (see [`run_rule`]).
        state_size (`int`): cells of the ring, at least 3.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, and the tokenizer they are made with. The `thoughts` are the states between the first and the last.

    Raises:
        ValueError: if an argument is out of range or there are not so many rows for a split.
    """
    check_integers({"rule": rule}, low=0)
    check_integers({"state_size": state_size}, low=3)
    if rule > 255:
        raise ValueError(f"rule must be at most 255, got {rule}")

    def draw_row(num_steps: int, rng: random.Random) -> TaskRow:
        states = [np.array([rng.getrandbits(1) for _ in range(state_size)])]
        for _ in range(num_steps):
            states.append(run_rule(states[-1], rule, 1))
        first, *between, last = ([BITS[bit] for bit in state.tolist()] for state in states)
        prompt = [STEP] * num_steps + first + [CELL] * state_size
        # asked at every cell's `?`, of which the first is followed by state_size - 1 others
        asked = [None] * (len(prompt) + 1 - state_size) + last
        return TaskRow(prompt, last, thoughts=[bit for state in between for bit in state], asked=asked)

    tokenizer = word_tokenizer([STEP, CELL, *BITS])
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


def run_rule(states: np.ndarray, rule: int, num_steps: int) -> np.ndarray:
    """Run an elementary cellular automaton.

    Args:
        states (`np.ndarray`): `[..., bits]`, rings of 0 and 1.
        rule (`int`): the cell that follows on a cell and its neighbours, which read as a binary number `left cell
            right`, is the bit of the rule with that number.
        num_steps (`int`): steps to take.

    Returns:
        `np.ndarray`: the states after so many steps, of the shape and type of `states`.
    """
    following = np.array([rule >> neighbours & 1 for neighbours in range(8)], dtype=states.dtype)
    for _ in range(num_steps):
        states = following[4 * np.roll(states, 1, -1) + 2 * states + np.roll(states, -1, -1)]
    return states
