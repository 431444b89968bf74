import re
from collections import Counter

import pytest

from hf_loop.tasks import scan
from hf_loop.tasks.scan import scan_commands


def interpret(command):
    """The actions of a command, by the rules of the paper's figure 7."""
    if " and " in command:
        first, second = command.split(" and ")
        return interpret(first) + interpret(second)
    if " after " in command:
        first, second = command.split(" after ")
        return interpret(second) + interpret(first)
    for word, count in (("twice", 2), ("thrice", 3)):
        if command.endswith(word):
            return interpret(command.removesuffix(f" {word}")) * count
    verb, *how = command.split()
    action = [] if verb == "turn" else [f"I_{verb.upper()}"]
    turn = [f"I_TURN_{how[-1].upper()}"] if how else []
    if how[:1] == ["around"]:
        return (turn + action) * 4
    return (turn * 2 if how[:1] == ["opposite"] else turn) + action


def test_there_are_20910_commands_with_the_actions_of_the_paper():
    commands = scan_commands()
    assert len(commands) == 20910
    assert all(list(actions) == interpret(command) for command, actions in commands.items())
    lengths = [len(actions) for actions in commands.values()]
    assert (lengths[0], lengths[-1]) == (1, 48) and lengths == sorted(lengths)
    # of the paper's figure 1
    assert " ".join(commands["jump around right"]) == " ".join(["I_TURN_RIGHT I_JUMP"] * 4)
    assert commands["turn opposite left"] == ("I_TURN_LEFT",) * 2
    assert " ".join(commands["jump opposite left after walk around left"]) == " ".join(
        ["I_TURN_LEFT I_WALK"] * 4 + ["I_TURN_LEFT I_TURN_LEFT I_JUMP"]
    )


@pytest.mark.parametrize(
    ("split", "num_train", "num_test"),
    # the sizes of the published files, without repetitions of the primitive
    [("length", 16990, 3920), ("addprim_jump", 13204, 7706), ("addprim_turn_left", 19702, 1208)],
)
def test_splits_have_the_published_sizes(split, num_train, num_test):
    with pytest.raises(ValueError, match=f"^num_test must be at most {num_test}, "):
        scan(4, 20910, split=split)
    assert num_train + num_test == 20910


@pytest.mark.parametrize(
    ("split", "is_test"),
    [
        ("length", lambda row: row["difficulty"] > 22),
        ("addprim_jump", lambda row: "jump" in row["prompt"] and row["prompt"] != "jump"),
        ("addprim_turn_left", lambda row: re.search(r"\bturn left\b", row["prompt"]) and row["prompt"] != "turn left"),
    ],
)
def test_splits_hold_back_what_they_say(split, is_test):
    splits, tokenizer = scan(400, 100, split=split, seed=2)
    assert not any(is_test(row) for row in splits["train"])
    assert all(is_test(row) for row in splits["test"])
    assert len(set(splits["test"]["prompt"])) == 100
    for row in [*splits["train"], *splits["test"]]:
        answer = [*interpret(row["prompt"]), "."]
        assert (row["answer"].split(), row["difficulty"]) == (answer, len(answer) - 1)
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *row["prompt"].split(), *answer]
        assert row["labels"] == [-100] * (1 + len(row["prompt"].split())) + row["input_ids"][-len(answer) :]


def test_a_tenth_of_the_training_rows_is_the_primitive():
    counts = Counter(scan(3000, 4, split="addprim_jump")[0]["train"]["prompt"])
    assert 240 < counts["jump"] < 360
    assert counts.most_common(2)[1][1] < 10


def test_difficulties_bound_the_actions():
    splits, _ = scan(300, 40, 8, min_difficulty=3, test_difficulties=[48, 32, 12])
    assert set(splits["train"]["difficulty"]) <= set(range(3, 9))
    assert set(splits["test"]["difficulty"]) == {12, 32, 48}
    assert splits["test"]["difficulty"] == sorted(splits["test"]["difficulty"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "template"}, "^split must be one of simple, length"),
        ({"split": "length", "difficulty": 23}, "^difficulty must be at most 22"),
        ({"min_difficulty": 47}, "^min_difficulty must be a number of actions"),
        ({"test_difficulties": [47]}, "^test_difficulties must have test commands"),
        ({"test_difficulties": []}, "^test_difficulties must have test commands"),
        ({"difficulty": 4, "min_difficulty": 5}, "^min_difficulty"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scan(4, 4, **options)
