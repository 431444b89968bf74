"""The largest sum of numbers no two of which are neighbours: a dynamic program, with the graph of its computation.

The numbers that are chosen are marked 1, the others 2:

    text        <bos>  3 5 4 -2 =     1 2 1 2
    labels      -100   ... -100       1 2 1 2

Of "Faith and Fate" (https://huggingface.co/papers/2305.18654): from the last number on, `dp[i] = max(dp[i + 1], a[i] +
dp[i + 2], 0)` is the largest sum of the numbers from `i` on; then, from the first on, `a[i]` is chosen if the number
before is not and `dp[i] = a[i] + dp[i + 2]`, which gives the marks that come first in lexicographic order.
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


MAX_VALUE = 5


@plain_counts
def non_adjacent_sum(
    num_train: int,
    num_test: int,
    difficulty: int = 8,
    *,
    min_difficulty: int = 4,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate lists of integers from -5 to 5: `"3 5 4 -2 ="` is answered by `"1 2 1 2"`.

    The difficulty is the length of the list. There are 11 lists of length 1, 121 of length 2, and so on, and one in
    eight is for testing.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py` and of [`graph_columns`], and the tokenizer they are made with. The `thoughts` are the sums `dp`, the
        last one first.

    Raises:
        ValueError: if an argument is out of range, or there are not so many lists for a split.
    """
    check_integers({"difficulty": difficulty}, low=1)

    def draw_row(length: int, rng: random.Random) -> TaskRow:
        return non_adjacent_sum_row(rng.choices(range(-MAX_VALUE, MAX_VALUE + 1), k=length))

    # of n numbers at most (n + 1) // 2 are chosen
    max_chosen = (max([difficulty, *(test_difficulties or [])]) + 1) // 2
    tokenizer = word_tokenizer(["=", *map(str, range(-MAX_VALUE, MAX_VALUE * max_chosen + 1))])
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


def non_adjacent_sum_row(numbers: Sequence[int]) -> TaskRow:
    """The row of a list of numbers."""
    graph = ComputationGraph()
    inputs = [graph.add_input(f"a{i}", number) for i, number in enumerate(numbers)]
    last = len(numbers) - 1
    # the largest sum with a number, and that of the numbers from it on
    with_it, best = dict(enumerate(inputs)), {last: graph.add(f"dp{last}", "max with 0", inputs[last])}
    if last > 0:
        # there is nothing behind the last number to choose with the one before
        best[last - 1] = graph.add(f"dp{last - 1}", "max with 0", inputs[last - 1], inputs[last])
    for i in range(last - 2, -1, -1):
        with_it[i] = graph.add(f"sum{i}", "add", inputs[i], best[i + 2])
        best[i] = graph.add(f"dp{i}", "max with 0", best[i + 1], with_it[i])
    marks: list[str] = []
    for i in range(len(numbers)):
        chosen = graph.add(f"equal{i}", "equal", best[i], with_it[i])
        if i > 0:
            chosen = graph.add(f"chosen{i}", "and", chosen, f"free{i}")
        marks.append(graph.add(f"mark{i}", "mark", chosen))
        if i < last:
            graph.add(f"free{i + 1}", "not", chosen)
    thought_nodes = list(best.values())
    return TaskRow(
        [*map(str, numbers), "="],
        [str(graph.nodes[name].value) for name in marks],
        thoughts=[str(graph.nodes[name].value) for name in thought_nodes],
        columns=graph_columns(graph, marks, thought_nodes),
    )
