"""Coin flips: a coin that is turned over or left alone."""

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts
from .state_tracking import StateTracking


COIN = StateTracking(states=("heads", "tails"), moves={"keep": (0, 1), "flip": (1, 0)})


@plain_counts
def coin_flips(
    num_train: int, num_test: int, num_moves: int = 12, *, curriculum: float = 0.0, seed: int = 0
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate coin flips: "heads flip keep flip" is answered by "heads".

    This is parity. Guessing is right half of the time.

    Args:
        num_train (`int`): training rows; games may repeat.
        num_test (`int`): test rows, distinct; none of these games is in the training split, whatever the seeds.
        num_moves (`int`): words `flip` or `keep` in a game.
        curriculum (`float`): the share of the training rows over which games grow from one move to `num_moves` (see
            [`~StateTracking.splits`]).
        seed (`int`): seed of the draw.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: as [`shell_game`].

    Raises:
        ValueError: if a size is out of range or there are not so many games for testing.
    """
    return COIN.splits(num_train, num_test, num_moves, curriculum, seed), COIN.tokenizer()
