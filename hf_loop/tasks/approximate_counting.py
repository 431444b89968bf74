"""Approximate counting: which share of all assignments satisfies a formula in disjunctive normal form.

    x1 !x3 | x0 x2 x3 |     is answered by     30%

`x1 and not x3, or x0 and x2 and x3` holds for 4 + 2 of 16 assignments, which is between 30 % and 40 %. Of "A Formal
Comparison Between Chain of Thought and Latent Thought" (https://huggingface.co/papers/2509.25239): a chain of thought
can draw random assignments and count those that satisfy, as the `thoughts` of a row do, and a loop, which draws
nothing, cannot. There the advantage is proven of formulas so large that nothing but sampling is left. With as few
variables as here a model may also count exactly, so a study must show, and not assume, that loops lose.
"""

import random
from collections.abc import Sequence
from functools import cache

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


OR, SATISFIED, NOT_SATISFIED = "|", "yes", "no"
SHARES = tuple(f"{10 * tenth}%" for tenth in range(10))
# draws of a formula for the share that is wanted, before another share is taken
NUM_DRAWS = 20

# variables by number, and whether each is negated
Clause = dict[int, bool]


@plain_counts
def approximate_counting(
    num_train: int,
    num_test: int,
    difficulty: int = 6,
    *,
    num_variables: int = 8,
    num_samples: int = 8,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate formulas and shares: `"x1 !x3 | x0 x2 x3 |"` is answered by `"30%"`, for 30 % up to, not with, 40 %.

    The difficulty is the number of clauses. Each row draws how many variables its clauses have, from 1 to all: the
    more of them, the lower the share, so the lengths of the clauses alone tell something of the answer. Of
    three clauses and more all answers are about equally frequent; of one, whose share is 50 %, 25 %, 12 % and so on,
    most are not to be had.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`]. Rows of a difficulty differ in length.
        num_variables (`int`): variables, 2 to 16.
        num_samples (`int`): random assignments in the `thoughts`.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py` and `share` (the exact one), and the tokenizer they are made with. The `thoughts` are random
        assignments, the bits of the variables in their order, each with `yes` or `no` for whether it satisfies.

    Raises:
        ValueError: if an argument is out of range or there are not so many rows for a split.
    """
    check_integers({"num_variables": num_variables}, low=2)
    check_integers({"num_samples": num_samples}, low=1)
    if num_variables > 16:
        raise ValueError(f"num_variables must be at most 16, got {num_variables}")

    def draw_row(num_clauses: int, rng: random.Random) -> TaskRow:
        wanted = rng.choice(SHARES)
        for _ in range(NUM_DRAWS):
            fewest, most = rng.choice(_clause_sizes(num_variables, num_clauses, SHARES.index(wanted)))
            clauses = [_draw_clause(num_variables, rng.randint(fewest, most), rng) for _ in range(num_clauses)]
            satisfying = satisfying_assignments(clauses, num_variables)
            count = satisfying.bit_count()
            # all of them are `90%` as well
            answer = SHARES[min(10 * count >> num_variables, 9)]
            if answer == wanted:
                break
        thoughts = []
        for _ in range(num_samples):
            assignment = rng.getrandbits(num_variables)
            thoughts += [str(assignment >> variable & 1) for variable in range(num_variables)]
            thoughts.append(SATISFIED if satisfying >> assignment & 1 else NOT_SATISFIED)
        prompt = [word for clause in clauses for word in (*map(_literal, clause.items()), OR)]
        return TaskRow(prompt, [answer], thoughts=thoughts, columns={"share": count / 2**num_variables})

    literals = [_literal((variable, negated)) for variable in range(num_variables) for negated in (False, True)]
    tokenizer = word_tokenizer([OR, *literals, *SHARES, "0", "1", SATISFIED, NOT_SATISFIED])
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


def satisfying_assignments(clauses: Sequence[Clause], num_variables: int) -> int:
    """The assignments that satisfy one of the clauses, as a set of bits.

    An assignment is a number whose bit i is variable i; bit n of the result is set if assignment n satisfies.
    """
    everything = (1 << 2**num_variables) - 1
    satisfying = 0
    for clause in clauses:
        allowed = everything
        for variable, negated in clause.items():
            true = _assignments_with(variable, num_variables)
            allowed &= everything ^ true if negated else true
        satisfying |= allowed
    return satisfying


@cache
def _assignments_with(variable: int, num_variables: int) -> int:
    """The assignments with a variable: runs of 2 ** variable zeros and ones, in turn."""
    run = (1 << 2**variable) - 1
    # a one at the start of every second run
    starts = ((1 << 2**num_variables) - 1) // ((1 << 2 ** (variable + 1)) - 1)
    return (run * starts) << 2**variable


@cache
def _clause_sizes(num_variables: int, num_clauses: int, tenth: int) -> list[tuple[int, int]]:
    """The fewest and the most variables of a clause with which about so many tenths of the assignments satisfy."""
    errors = {}
    for fewest in range(1, num_variables + 1):
        for most in range(fewest, num_variables + 1):
            # as if clauses were independent
            of_one = sum(2.0**-size for size in range(fewest, most + 1)) / (most + 1 - fewest)
            errors[fewest, most] = abs(1 - (1 - of_one) ** num_clauses - (tenth + 0.5) / 10)
    return [sizes for sizes, error in errors.items() if error <= max(0.1, min(errors.values()))]


def _draw_clause(num_variables: int, num_literals: int, rng: random.Random) -> Clause:
    variables = rng.sample(range(num_variables), num_literals)
    return {variable: rng.random() < 0.5 for variable in sorted(variables)}


def _literal(literal: tuple[int, bool]) -> str:
    variable, negated = literal
    return f"!x{variable}" if negated else f"x{variable}"
