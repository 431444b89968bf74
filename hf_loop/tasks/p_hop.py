"""p-hop induction: from the last symbol, go back to its previous occurrence and one to the right, p times over.

Two hops over three letters. The last letter is `b`; behind the `b` before it stands `c`, and behind the `c` before
that one stands `a`:

    text      <bos>  >     >     a     b     c     a     b     c     b     a
    labels    -100   -100  -100  -100  -100  -100  -100  -100  -100  b     a

The labels are aligned as transformers has them. As in "Transformers, Parallel Computation, and Logarithmic Depth"
(https://huggingface.co/papers/2402.09268), the same is asked of every letter that has so many hops behind it, here of
the last `c`; what is asked in the middle is not told. And no symbol stands beside itself: a hop would end where it
starts, and so would all that follow. Each mark `>` in front stands for a hop, so that more hops than in training need
no new word. For these composed induction heads log2 p layers are enough and needed; a layer that is looped does as
well as as many layers ("Reasoning with Latent Thoughts", https://huggingface.co/papers/2502.17416).
"""

import random
from collections.abc import Sequence
from string import ascii_lowercase

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .rows import MAX_TRIES, TaskRow, task_splits
from .tokenizer import word_tokenizer


HOP = ">"


@plain_counts
def p_hop(
    num_train: int,
    num_test: int,
    difficulty: int = 4,
    *,
    sequence_length: int = 64,
    alphabet_size: int = 4,
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate p-hop induction: `"> > a b c a b c b"` is answered by `"a"`.

    The difficulty is the number of hops.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].
        sequence_length (`int`): symbols of a sequence. A hop goes back by `alphabet_size - 1` symbols on average, and
            sequences in which a hop finds nothing are drawn again.
        alphabet_size (`int`): symbols to draw from, 3 to 26. The answer of one hop is never the last symbol.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, and the tokenizer they are made with. The `thoughts` are the symbols that the hops before the last
        one lead to.

    Raises:
        ValueError: if an argument is out of range, sequences are too short for the hops, or there are not so many
            rows for a split.
    """
    check_integers({"sequence_length": sequence_length, "alphabet_size": alphabet_size}, low=3)
    if alphabet_size > len(ascii_lowercase):
        raise ValueError(f"alphabet_size must be at most {len(ascii_lowercase)}, got {alphabet_size}")
    alphabet: str = ascii_lowercase[:alphabet_size]
    others: dict[str, str] = {symbol: alphabet.replace(symbol, "") for symbol in alphabet}

    def draw_row(num_hops: int, rng: random.Random) -> TaskRow:
        for _ in range(MAX_TRIES):
            sequence = rng.choice(alphabet)
            while len(sequence) < sequence_length:
                sequence += rng.choice(others[sequence[-1]])
            visited = hop(sequence, num_hops)
            if len(visited) == num_hops:
                asked: list[str | None] = [None] * (1 + num_hops)
                for end in range(1, sequence_length + 1):
                    found = hop(sequence[:end], num_hops)
                    asked.append(found[-1] if len(found) == num_hops else None)
                return TaskRow([HOP] * num_hops + list(sequence), visited[-1:], thoughts=visited[:-1], asked=asked)
        raise ValueError(
            f"sequence_length must be higher for {num_hops} hops: of {MAX_TRIES} sequences of {sequence_length} "
            "symbols none has so many"
        )

    tokenizer = word_tokenizer([HOP, *alphabet])
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


def hop(sequence: str, num_hops: int) -> list[str]:
    """The symbols that hops from the last one lead to, fewer than `num_hops` if one finds no earlier occurrence."""
    place, visited = len(sequence) - 1, []
    for _ in range(num_hops):
        previous = sequence.rfind(sequence[place], 0, place)
        if previous < 0:
            break
        place = previous + 1
        visited.append(sequence[place])
    return visited
