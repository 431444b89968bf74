"""SCAN: commands in a simple English, and the actions they stand for.

    jump twice after walk left     is answered by     I_TURN_LEFT I_WALK I_JUMP I_JUMP .

Of "Generalization without Systematicity" (https://huggingface.co/papers/1711.00350). The 20,910 commands are all there
are; a split says which of them are for training. A full stop, which the paper has not, ends the actions, so that a
model is asked when to stop.
"""

import random
from collections.abc import Sequence
from functools import cache
from itertools import groupby, product
from typing import Literal, get_args

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers, check_share, growing_bounds
from .counts import plain_counts
from .rows import TaskRow, is_test_content, task_dataset
from .tokenizer import word_tokenizer


SplitName = Literal["simple", "length", "addprim_jump", "addprim_turn_left"]

STOP = "."
VERBS, SIDES, TIMES = ("walk", "look", "run", "jump"), ("left", "right"), ("", "twice", "thrice")
ACTIONS = ("I_WALK", "I_LOOK", "I_RUN", "I_JUMP", "I_TURN_LEFT", "I_TURN_RIGHT")
MAX_TRAIN_LENGTH = 22
# the command that is trained on alone
PRIMITIVES = {"addprim_jump": "jump", "addprim_turn_left": "turn left"}
# the share of the training rows that are the primitive command alone, in the splits that add one
PRIMITIVE_SHARE = 0.1


@plain_counts
def scan(
    num_train: int,
    num_test: int,
    difficulty: int | None = None,
    *,
    split: SplitName = "simple",
    min_difficulty: int = 1,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Draw commands of SCAN: `"jump twice after walk left"` is answered by `"I_TURN_LEFT I_WALK I_JUMP I_JUMP ."`.

    The difficulty is the number of actions, 1 to 48; not every number has commands.

    Args:
        num_train (`int`): training rows, drawn with repetition. All training commands of the split are equally
            likely, whatever their difficulty.
        num_test (`int`): test rows, distinct, in the order of their difficulties; all test commands of the split with
            these difficulties are equally likely.
        difficulty (`int`, *optional*): the most actions of a training command; all by default.
        split (`str`): which commands are for training. `"simple"`: seven in eight at random, the same for every seed.
            `"length"`: those of up to 22 actions. `"addprim_jump"`: those without `jump`, and `jump` alone, which is
            a tenth of the rows. `"addprim_turn_left"`: the same with `turn left`.
        min_difficulty (`int`): the fewest actions of a training command.
        test_difficulties (`Sequence[int]`, *optional*): the numbers of actions of test commands; by default those
            from `min_difficulty` to `difficulty`, and in the split `"length"` all above 22.
        curriculum, group_size, seed: see [`task_splits`].

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, and the tokenizer they are made with.

    Raises:
        ValueError: if an argument is out of range or there are not so many commands for a split.
    """
    check_integers({"num_train": num_train, "num_test": num_test, "group_size": group_size}, low=1)
    check_share("curriculum", curriculum)
    if split not in get_args(SplitName):
        raise ValueError(f"split must be one of {', '.join(get_args(SplitName))}, got {split!r}")
    actions = scan_commands()
    tests = {command for command in actions if _is_for_testing(command, split)}
    training = [command for command in actions if command not in tests]
    difficulty = len(actions[training[-1]]) if difficulty is None else difficulty
    check_integers({"difficulty": difficulty, "min_difficulty": min_difficulty}, low=1)
    if split == "length" and difficulty > MAX_TRAIN_LENGTH:
        raise ValueError(f"difficulty must be at most {MAX_TRAIN_LENGTH} in the split length, got {difficulty}")
    drawn_train = _draw_training(
        training,
        PRIMITIVES.get(split),
        num_train,
        group_size,
        (min_difficulty, difficulty),
        curriculum,
        random.Random(f"train {seed}"),
    )
    wanted = set(test_difficulties or ())
    if test_difficulties is None:
        lowest, highest = (MAX_TRAIN_LENGTH + 1, 48) if split == "length" else (min_difficulty, difficulty)
        wanted = set(range(lowest, highest + 1))
    pool = [command for command in actions if command in tests and len(actions[command]) in wanted]
    missing = wanted - {len(actions[command]) for command in pool}
    if test_difficulties is not None and (missing or not wanted):
        raise ValueError(f"test_difficulties must have test commands in the split {split}, got {test_difficulties}")
    if num_test > len(pool):
        raise ValueError(f"num_test must be at most {len(pool)}, the test commands there are, got {num_test}")
    chosen = set(random.Random(f"test {seed}").sample(pool, num_test))
    drawn_test = [command for command in pool if command in chosen]

    tokenizer = word_tokenizer(
        [*VERBS, "turn", *SIDES, "opposite", "around", *TIMES[1:], "and", "after", *ACTIONS, STOP]
    )
    splits = DatasetDict()
    for name, commands in (("train", drawn_train), ("test", drawn_test)):
        rows = [TaskRow(command.split(), [*actions[command], STOP]) for command in commands]
        splits[name] = task_dataset(rows, [len(actions[command]) for command in commands], tokenizer)
    return splits, tokenizer


@cache
def scan_commands() -> dict[str, tuple[str, ...]]:
    """All commands and their actions; those with fewer actions first."""
    phrases: dict[str, tuple[str, ...]] = {verb: (f"I_{verb.upper()}",) for verb in VERBS}
    for verb, side in product((*VERBS, "turn"), SIDES):
        turn, action = (f"I_TURN_{side.upper()}",), phrases.get(verb, ())
        phrases[f"{verb} {side}"] = turn + action
        phrases[f"{verb} opposite {side}"] = turn + turn + action
        phrases[f"{verb} around {side}"] = 4 * (turn + action)
    sentences = {
        f"{phrase} {times}".strip(): count * actions
        for phrase, actions in phrases.items()
        for count, times in enumerate(TIMES, 1)
    }
    commands = dict(sentences)
    for (first, actions), (second, further) in product(sentences.items(), repeat=2):
        commands[f"{first} and {second}"] = actions + further
        commands[f"{first} after {second}"] = further + actions
    return dict(sorted(commands.items(), key=lambda item: (len(item[1]), item[0])))


def _is_for_testing(command: str, split: SplitName) -> bool:
    if split == "simple":
        return is_test_content(command)
    if split == "length":
        return len(scan_commands()[command]) > MAX_TRAIN_LENGTH
    # no other word ends or begins as these do
    return command != PRIMITIVES[split] and PRIMITIVES[split] in command


def _draw_training(
    commands: Sequence[str],
    primitive: str | None,
    num_rows: int,
    group_size: int,
    difficulties: tuple[int, int],
    curriculum: float,
    rng: random.Random,
) -> list[str]:
    low, high = difficulties
    levels = {
        level: list(members)
        for level, members in groupby(commands, key=lambda command: len(scan_commands()[command]))
        if low <= level <= high
    }
    if not levels or min(levels) > low:
        raise ValueError(f"min_difficulty must be a number of actions that commands for training have, got {low}")
    drawn: list[str] = []
    for bound in growing_bounds(-(-num_rows // group_size), low, high, curriculum).tolist():
        open_levels = [level for level in levels if level <= bound]
        # the first command of a group decides the number of actions of all
        if primitive is not None and 1 in levels and rng.random() < PRIMITIVE_SHARE:
            drawn += [primitive] * group_size
            continue
        level = rng.choices(open_levels, weights=[len(levels[level]) for level in open_levels])[0]
        drawn += rng.choices(levels[level], k=group_size)
    return drawn[:num_rows]
