"""Modular arithmetic: expressions of `+`, `-` and `*` in full parentheses, modulo a small number.

    ( 3 * ( 4 - 6 ) )     is answered by     1     modulo 7

Of https://huggingface.co/papers/2608.31067, and of the comparison of loops with chains of thought in
https://huggingface.co/papers/2509.25239.
"""

from collections.abc import Sequence

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .expressions import Language


@plain_counts
def modular_arithmetic(
    num_train: int,
    num_test: int,
    difficulty: int = 4,
    *,
    modulus: int = 7,
    max_operators: int = 32,
    min_difficulty: int = 2,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate modular arithmetic: `"( 3 * ( 4 - 6 ) )"` is answered by `"1"`. All values are answers equally often.

    The difficulty is the depth: the operators on the longest way from the outermost to a number. A change of any part
    changes the answer, unless the part is multiplied by 0 (or, modulo a number that is no prime, by a divisor).

    Args:
        num_train, num_test, difficulty, max_operators, min_difficulty, test_difficulties, curriculum, group_size,
            seed: see [`boolean_circuits`].
        modulus (`int`): the number that values are taken modulo, at least 2.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: as [`boolean_circuits`].

    Raises:
        ValueError: if an argument is out of range or there are not so many rows for a split.
    """
    check_integers({"modulus": modulus}, low=2)
    operators = {
        "+": lambda left, right: (left + right) % modulus,
        "-": lambda left, right: (left - right) % modulus,
        "*": lambda left, right: left * right % modulus,
    }
    return Language(modulus, operators, {}).splits(
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
