"""Sums of several numbers, digit by digit, with the graph of their computation.

Three numbers of two digits, the least significant digit first: 21 + 43 + 65 = 129.

    text        <bos>  1 2 + 3 4 + 5 6 =     9    2    1
    labels      -100   ... -100              9    2    1

The answer has as many digits as the largest sum of so many numbers. It is asked directly, as in "Reasoning with Latent
Thoughts: On the Power of Looped Transformers" (https://huggingface.co/papers/2502.17416), where one layer in twelve
loops adds 32 numbers of three digits as well as twelve layers do. The graph, in the manner of "Faith and Fate"
(https://huggingface.co/papers/2305.18654), adds number by number and column by column, with carries.
"""

import random
from collections.abc import Sequence

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .computation_graph import ComputationGraph, graph_columns
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


FEWEST_OPERANDS = 2


@plain_counts
def addition(
    num_train: int,
    num_test: int,
    difficulty: int = 4,
    *,
    num_digits: int = 3,
    reverse_digits: bool = True,
    min_difficulty: int = FEWEST_OPERANDS,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate sums: `"1 2 + 3 4 + 5 6 ="` is answered by `"9 2 1"`.

    The difficulty is the number of operands. Sums of the same numbers in another order are in the same split.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].
        num_digits (`int`): digits of each operand, zeros in front included.
        reverse_digits (`bool`): write numbers with the least significant digit first, in the order of the carries.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py` and of [`graph_columns`], and the tokenizer they are made with. The `thoughts` are the sums of the
        first two operands, the first three, and so on, `=` behind each.

    Raises:
        ValueError: if an argument is out of range, or there are not so many sums for a split.
    """
    check_integers({"num_digits": num_digits}, low=1)
    levels = {f"test_difficulties[{i}]": level for i, level in enumerate(test_difficulties or [])}
    check_integers({"min_difficulty": min_difficulty} | levels, low=FEWEST_OPERANDS)

    def draw_row(num_operands: int, rng: random.Random) -> TaskRow:
        return addition_row([rng.randrange(10**num_digits) for _ in range(num_operands)], num_digits, reverse_digits)

    tokenizer = word_tokenizer([*map(str, range(10)), "+", "="])
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


def addition_row(operands: Sequence[int], num_digits: int, reverse_digits: bool) -> TaskRow:
    """The row of a sum.

    Args:
        operands (`Sequence[int]`): the numbers, at least two.
        num_digits (`int`): digits that each is written with.
        reverse_digits (`bool`): write numbers with the least significant digit first.
    """
    order = 1 if reverse_digits else -1
    graph = ComputationGraph()
    numbers = [
        # x1.0 is the least significant digit of the second operand
        [graph.add_input(f"x{i}.{place}", operand // 10**place % 10) for place in range(num_digits)]
        for i, operand in enumerate(operands)
    ]
    prompt: list[str] = []
    for number in numbers:
        prompt += ["+" if prompt else "", *(str(graph.nodes[name].value) for name in number[::order])]
    totals = [numbers[0]]
    for i, number in enumerate(numbers[1:], start=1):
        num_places = len(str((i + 1) * (10**num_digits - 1)))
        totals.append(add_digits(graph, totals[-1], number, num_places, str(i)))
    thought_nodes: list[str] = []
    for total in totals[1:-1]:
        thought_nodes += [*total[::order], ""]
    answer_nodes = totals[-1][::order]
    return TaskRow(
        [*prompt[1:], "="],
        [str(graph.nodes[name].value) for name in answer_nodes],
        thoughts=[str(graph.nodes[name].value) if name else "=" for name in thought_nodes],
        key=" ".join(map(str, sorted(operands))),
        columns=graph_columns(graph, answer_nodes, thought_nodes),
    )


def add_digits(
    graph: ComputationGraph, first: Sequence[str], second: Sequence[str], num_places: int, label: str
) -> list[str]:
    """Add the nodes of a sum of two numbers column by column, with carries.

    Args:
        graph (`ComputationGraph`): the graph with the digits of both.
        first (`Sequence[str]`): the nodes of one number's digits, the least significant one first.
        second (`Sequence[str]`): the nodes of the other's.
        num_places (`int`): digits of the sum, enough for every sum of two such numbers.
        label (`str`): ending of the names of the new nodes.

    Returns:
        `list[str]`: the nodes of the sum's digits, `num_places` of them.
    """
    digits: list[str] = []
    carry: list[str] = []
    for place in range(num_places):
        column = [*first[place : place + 1], *second[place : place + 1], *carry]
        # a carry alone, or a digit alone in the first places, is the digit of the sum
        total = column[0] if len(column) == 1 else graph.add(f"sum{label}.{place}", "add", *column)
        # nothing is carried from the last place, nor from a digit alone
        if place == num_places - 1 or len(column) == 1:
            digits.append(total)
            carry = []
        else:
            digits.append(graph.add(f"digit{label}.{place}", "residual", total))
            carry = [graph.add(f"carry{label}.{place}", "carry", total)]
    return digits
