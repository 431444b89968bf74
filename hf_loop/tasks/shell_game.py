"""The shell game: a ball under one of a few cups, and cups that change places."""

from itertools import combinations

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts, whole_number
from .state_tracking import StateTracking


@plain_counts
def shell_game(
    num_train: int,
    num_test: int,
    num_swaps: int = 8,
    *,
    num_cups: int = 3,
    curriculum: float = 0.0,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate the shell game: "ball:2 1<->2 2<->3" is answered by "ball:1".

    With three cups, guessing is right once in three. The swaps of cups generate a group that does not commute, so the
    answer depends on their order and not on their counts.

    Args:
        num_train (`int`): training rows; games may repeat.
        num_test (`int`): test rows, distinct; none of these games is in the training split, whatever the seeds.
        num_swaps (`int`): swaps in a game.
        num_cups (`int`): cups, at least 3: two cups leave nothing but one swap to choose.
        curriculum (`float`): the share of the training rows over which games grow from one swap to `num_swaps` (see
            [`~StateTracking.splits`]).
        seed (`int`): seed of the draw.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns `prompt`,
        `answer`, `input_ids`, `labels` and `difficulty` (explained in `state_tracking.py`), and the tokenizer they
        are made with.

    Raises:
        ValueError: if a size is out of range or there are not so many games for testing.
    """
    if whole_number(num_cups) is None or num_cups < 3:
        raise ValueError(f"num_cups must be an integer of at least 3, got {num_cups!r}")
    task = cup_machine(num_cups)
    return task.splits(num_train, num_test, num_swaps, curriculum, seed), task.tokenizer()


def cup_machine(num_cups: int) -> StateTracking:
    """The machine whose state is the cup that the ball is under, and whose moves are the swaps of two cups."""
    moves = {}
    for left, right in combinations(range(num_cups), 2):
        after = list(range(num_cups))
        after[left], after[right] = right, left
        moves[f"{left + 1}<->{right + 1}"] = tuple(after)
    return StateTracking(states=tuple(f"ball:{cup + 1}" for cup in range(num_cups)), moves=moves)
