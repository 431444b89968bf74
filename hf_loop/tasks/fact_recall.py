"""Fact recall: facts that no prompt tells, and that a model must keep in its weights.

    k3 k0 k7     is answered by     v5

because that is how the facts were drawn, with a seed of their own. A test asks for the same facts as training: it
measures how many a model keeps, and there is no rule to be found. What a model can keep grows with its parameters and
not with its loops ("Reasoning with Latent Thoughts", https://huggingface.co/papers/2502.17416, finds that loops help
reasoning and not memorization), so loops should lose to as many layers.
"""

import random
from collections.abc import Sequence

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .rows import TaskRow, task_splits
from .tokenizer import word_tokenizer


MAX_KEYS = 2**20


@plain_counts
def fact_recall(
    num_train: int,
    num_test: int,
    difficulty: int = 4,
    *,
    num_facts: int = 64,
    num_words: int = 16,
    key_length: int = 3,
    num_values: int = 16,
    facts_seed: int = 0,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate questions for facts: `"k3 k0 k7"` is answered by `"v5"`. Guessing is right once in `num_values` times.

    The difficulty is how rare a fact is: there are twice as many facts of each difficulty as of the one before it,
    and they share as many training rows, so each is seen half as often. Keys are made of several words, so that a
    fact cannot be kept in the embedding of one.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`]. Unlike in other tasks, test rows are rows of training; only facts of difficulties that
            are not trained on are none, and have no right answer but by chance.
        num_facts (`int`): facts of difficulty 1.
        num_words (`int`): words that keys are made of.
        key_length (`int`): words of a key.
        num_values (`int`): words for values, at least 2.
        facts_seed (`int`): seed of the facts. The facts of a difficulty are the same whatever other difficulties
            there are.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, and the tokenizer they are made with.

    Raises:
        ValueError: if an argument is out of range, there are not as many keys as facts, or more test rows than facts.
    """
    check_integers({"num_facts": num_facts, "key_length": key_length}, low=1)
    check_integers({"num_words": num_words, "num_values": num_values}, low=2)
    num_keys = num_words**key_length
    if not num_facts <= num_keys <= MAX_KEYS:
        raise ValueError(
            f"num_words ** key_length must be from num_facts={num_facts} to {MAX_KEYS}, "
            f"got {num_words} ** {key_length}"
        )
    facts = random.Random(f"facts {facts_seed}")
    keys = list(range(num_keys))
    facts.shuffle(keys)
    values = facts.choices(range(num_values), k=num_keys)

    def draw_row(level: int, rng: random.Random) -> TaskRow:
        # num_facts * (1 + 2 + 4 + ...) of lower levels come first
        number = rng.randrange(num_facts * (2 ** (level - 1) - 1), num_facts * (2**level - 1))
        key = [keys[number] // num_words**place % num_words for place in range(key_length)]
        return TaskRow([f"k{word}" for word in key], [f"v{values[number]}"])

    tokenizer = word_tokenizer([*(f"k{word}" for word in range(num_words)), *(f"v{i}" for i in range(num_values))])
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
        max_difficulty=(num_keys // num_facts + 1).bit_length() - 1,
        keep_apart=False,
    )
    return splits, tokenizer
