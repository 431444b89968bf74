"""Products of two numbers by the method taught in schools, with the graph of their computation.

Two numbers of two digits, the least significant digit first: 21 * 34 = 714.

    text        <bos>  1 2 * 4 3 =     4    1    7    0
    labels      -100   ... -100        4    1    7    0

The answer has as many digits as both factors together. Of "Faith and Fate" (https://huggingface.co/papers/2305.18654),
where models answer right for the numbers of digits they were trained on and fail beyond. As in its graph, the first
factor is multiplied by each digit of the second, with carries, and what that gives is added up, one product after the
other; each node is a digit or a number of two digits that is split into a digit and a carry.
"""

import random
from collections.abc import Sequence

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .addition import add_digits
from .blocks import check_integers
from .computation_graph import ComputationGraph, graph_columns
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


@plain_counts
def multiplication(
    num_train: int,
    num_test: int,
    difficulty: int = 3,
    *,
    first_digits: int | None = None,
    reverse_digits: bool = True,
    min_difficulty: int = 2,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate products: `"1 2 * 4 3 ="` is answered by `"4 1 7 0"`.

    The difficulty is the number of digits of the second factor, and of the first too unless `first_digits` fixes that.
    So it counts the products that are added up. The same factors the other way round are in the same split. There are
    few products of numbers of one digit, seven or so for testing.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].
        first_digits (`int`, *optional*): digits of the first factor; as many as the second has by default.
        reverse_digits (`bool`): write numbers with the least significant digit first, in the order of the carries.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py` and of [`graph_columns`], and the tokenizer they are made with. The `thoughts` are the product with
        the first digit; then for each further digit its product and, before the last sum, the sum so far.

    Raises:
        ValueError: if an argument is out of range, or there are not so many products for a split.
    """
    if first_digits is not None:
        check_integers({"first_digits": first_digits}, low=1)

    def draw_row(num_digits: int, rng: random.Random) -> TaskRow:
        sizes = (first_digits or num_digits, num_digits)
        first, second = (rng.randrange(10**size) for size in sizes)
        return multiplication_row(first, second, sizes, reverse_digits)

    tokenizer = word_tokenizer([*map(str, range(10)), "*", "="])
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


def multiplication_row(first: int, second: int, sizes: tuple[int, int], reverse_digits: bool) -> TaskRow:
    """The row of a product.

    Args:
        first (`int`): the first factor.
        second (`int`): the second.
        sizes (`tuple[int, int]`): digits that each is written with.
        reverse_digits (`bool`): write numbers with the least significant digit first.
    """
    order = 1 if reverse_digits else -1
    graph = ComputationGraph()
    # x0 and y0 are the least significant digits
    x, y = (
        [graph.add_input(f"{name}{place}", factor // 10**place % 10) for place in range(size)]
        for name, factor, size in (("x", first, sizes[0]), ("y", second, sizes[1]))
    )
    total: list[str] = []
    steps: list[list[str]] = []
    for place, digit in enumerate(y):
        partial = _multiply_digits(graph, x, digit, str(place))
        steps.append(partial)
        if place == 0:
            total = partial
        else:
            # the lowest digits are final, the new product stands above them
            total = total[:place] + add_digits(graph, total[place:], partial, len(partial), str(place))
            steps.append(total)
    answer_nodes = total[::order]
    # the last step is the answer
    thought_nodes = [name for step in steps[:-1] for name in (*step[::order], "")]

    def words(names: Sequence[str]) -> list[str]:
        return [str(graph.nodes[name].value) if name else "=" for name in names]

    return TaskRow(
        [*words(x[::order]), "*", *words(y[::order]), "="],
        words(answer_nodes),
        thoughts=words(thought_nodes),
        key=" ".join(map(str, sorted((first, second)))),
        columns=graph_columns(graph, answer_nodes, thought_nodes),
    )


def _multiply_digits(graph: ComputationGraph, number: Sequence[str], digit: str, label: str) -> list[str]:
    """Add the nodes of a number times a digit; those of the product's digits are one more than the number's."""
    digits: list[str] = []
    carry = ""
    for place, other in enumerate(number):
        product = graph.add(f"product{label}.{place}", "multiply", other, digit)
        if carry:
            product = graph.add(f"carried{label}.{place}", "add", product, carry)
        digits.append(graph.add(f"partial{label}.{place}", "residual", product))
        carry = graph.add(f"rest{label}.{place}", "carry", product)
    return [*digits, carry]
