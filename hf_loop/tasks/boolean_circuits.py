"""Boolean circuits: expressions of `and`, `or`, `xor` and `not` in full parentheses.

    ( 1 and ( not ( 0 xor 1 ) ) )     is answered by     0

Of https://huggingface.co/papers/2608.31067, where a looped layer of a few hundred parameters has seen depths 1 and 2
and answers depth 30.
"""

from collections.abc import Sequence
from operator import and_, or_, xor

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .expressions import Language


BOOLEAN = Language(2, {"and": and_, "or": or_, "xor": xor}, {"not": lambda bit: 1 - bit})


@plain_counts
def boolean_circuits(
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
    """Generate Boolean circuits: `"( 1 and ( not 0 ) )"` is answered by `"1"`. Half of the answers are 1.

    The difficulty is the depth: the operators on the longest way from the outermost to a bit. An operator may hide
    what is below it, as in `( 0 and ... )`; the column `reach` says how deep the answer depends on the expression,
    which in deep circuits is often less than the depth. [`modular_arithmetic`] hides less.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`]. Rows of a difficulty differ in length; of depth 1 there are 14, of which a few are for
            testing.
        max_operators (`int`): the most operators of an expression, at least its depth. Expressions that are nearly as
            deep as this are chains, with an operator for each level and few besides.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, `num_operators` and `reach` (depth of the deepest part whose change alone would change the answer,
        0 if there is none); and the tokenizer they are made with. The `thoughts` are the values in parentheses as
        they close, without the last one. They are asked for there, too, but for those of parts that are for testing.

    Raises:
        ValueError: if an argument is out of range or there are not so many rows for a split.
    """
    return BOOLEAN.splits(
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
