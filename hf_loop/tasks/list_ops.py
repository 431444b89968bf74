"""ListOps with two operands: expressions of `max`, `min` and `sum` (modulo 10) over digits, in full parentheses.

    ( 3 max ( 4 sum 9 ) )     is answered by     3

Of https://huggingface.co/papers/1804.06028, in the form with full parentheses of https://huggingface.co/papers/2608.31067.
There, operators take lists, and one of them is the median; of two digits there is none.
"""

from collections.abc import Sequence

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .expressions import Language


LIST_OPS = Language(10, {"max": max, "min": min, "sum": lambda left, right: (left + right) % 10}, {})


@plain_counts
def list_ops(
    num_train: int,
    num_test: int,
    difficulty: int = 4,
    *,
    max_operators: int = 32,
    min_difficulty: int = 2,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate ListOps: `"( 3 max ( 4 sum 9 ) )"` is answered by `"3"`. All digits are answers equally often.

    The difficulty is the depth: the operators on the longest way from the outermost to a digit.

    Args:
        num_train, num_test, difficulty, max_operators, min_difficulty, test_difficulties, curriculum, group_size,
            seed: see [`boolean_circuits`].

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: as [`boolean_circuits`].

    Raises:
        ValueError: if an argument is out of range or there are not so many rows for a split.
    """
    return LIST_OPS.splits(
        num_train,
        num_test,
        difficulty,
        max_operators,
        min_difficulty=min_difficulty,
        test_difficulties=test_difficulties,
        curriculum=curriculum,
        group_size=group_size,
        seed=seed,
    )
