"""Rule 110 in blocks: states of a cellular automaton, one a block, and what becomes of them is asked at the end.

Each of the first blocks is a random state, a ring of bits; the last one asks for the first bit of every state after so
many steps. Two states of six bits:

    0 1 1 0 1 0  |  1 1 0 0 1 0  |  ?0 1 ?1 0

The bits are what their words say, `?1` asks for the second state, and the loss is on the bits behind the questions
alone. The automaton of "Do Language Models Need Sleep?" (https://huggingface.co/papers/2605.26099): a model that drops
a block when it ends can answer only from what it has made of the state by then, and the first bit after t steps
depends on up to 2 t + 1 bits in a way that has no known shortcut. There, an answer has no word that asks for it; here
it has, so that each is predicted from a place of its own. The ring (the first bit is a neighbour of the last) is our
choice.
"""

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers, draw_split, ragged_dataset
from .cellular_automaton import run_rule
from .counts import plain_counts
from .tokenizer import IGNORE_INDEX, SPECIAL_TOKENS, word_tokenizer


# words follow the special tokens in the order that `word_tokenizer` is given them
FIRST_BIT_ID = len(SPECIAL_TOKENS)
FIRST_QUESTION_ID = FIRST_BIT_ID + 2


@plain_counts
def rule_110(
    num_train: int,
    num_test: int,
    num_steps: int = 8,
    *,
    num_states: int = 4,
    state_size: int = 24,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate states of Rule 110 and questions for what becomes of them.

    Args:
        num_train (`int`): training rows; rows may repeat.
        num_test (`int`): test rows, none of which is in the training split, whatever the seeds.
        num_steps (`int`): steps that the automaton takes; 0 asks for a bit of what was read.
        num_states (`int`): states of a row, each in a block of its own.
        state_size (`int`): bits of a state, which are the tokens of a block. A block is a window for a model that
            works in windows.
        seed (`int`): seed of the draw; the same seed gives the same rows.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns `input_ids`,
        `labels` (`-100` where there is no label) and `difficulty` (`num_steps`), and the tokenizer they are made with.

    Raises:
        ValueError: if an argument is out of range, or the questions do not fit in a block.
    """
    sizes = {"num_train": num_train, "num_test": num_test, "num_states": num_states, "state_size": state_size}
    check_integers(sizes, low=1)
    check_integers({"num_steps": num_steps}, low=0)
    if state_size < 2 * num_states:
        raise ValueError(
            f"state_size must be at least {2 * num_states}, so that {num_states} questions and answers fit in a "
            f"block, got {state_size}"
        )
    tokenizer = word_tokenizer(["0", "1", *(f"?{i}" for i in range(num_states))])
    rng = np.random.default_rng(seed)

    def draw(count: int) -> dict[str, np.ndarray]:
        return _draw(count, num_steps, num_states, state_size, rng)

    splits = DatasetDict()
    for split, count in (("train", num_train), ("test", num_test)):
        rows = ragged_dataset({name: [part] for name, part in draw_split(split, count, draw).items()})
        splits[split] = rows.add_column("difficulty", [num_steps] * count)
    return splits, tokenizer


def rule_110_accuracy(predictions: np.ndarray, rows: Dataset) -> dict[str, float]:
    """Compute the shares of right answers.

    Args:
        predictions (`np.ndarray`): `[rows, num_states]`: the token predicted for every answer, in order.
        rows (`Dataset`): rows of a split of [`rule_110`], in the same order.

    Returns:
        `dict`: `exact`, the share of rows with all answers right; `bits`, that of answers; and `exact_by_guessing`
        and `bits_by_guessing`, the same of the one answer that is right most often.

    Raises:
        ValueError: if there are not as many predictions as answers.
    """
    labels = np.array([[label for label in row if label != IGNORE_INDEX] for row in rows["labels"]])
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions must have the shape {labels.shape} of the answers, got {predictions.shape}")
    guess = np.bincount(labels.ravel()).argmax()
    shares = {}
    for name, right in (("", predictions == labels), ("_by_guessing", labels == guess)):
        shares |= {f"exact{name}": float(right.all(1).mean()), f"bits{name}": float(right.mean())}
    return shares


def run_rule_110(states: np.ndarray, num_steps: int) -> np.ndarray:
    """The states `[..., bits]`, rings of 0 and 1, after `num_steps` steps of Rule 110."""
    return run_rule(states, 110, num_steps)


def _draw(
    num_rows: int, num_steps: int, num_states: int, state_size: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Rows, whichever split they belong to."""
    states = rng.integers(2, size=(num_rows, num_states, state_size), dtype=np.int32)
    answers = run_rule_110(states, num_steps)[..., 0]
    questions = np.broadcast_to(np.arange(num_states, dtype=np.int32), answers.shape)
    asked = np.stack([FIRST_QUESTION_ID + questions, FIRST_BIT_ID + answers], axis=2).reshape(num_rows, -1)
    input_ids = np.concatenate([FIRST_BIT_ID + states.reshape(num_rows, -1), asked], axis=1)
    labels = np.full_like(input_ids, IGNORE_INDEX)
    labels[:, -2 * num_states + 1 :: 2] = FIRST_BIT_ID + answers
    return {"input_ids": input_ids, "labels": labels}
