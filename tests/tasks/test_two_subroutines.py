"""The answers follow from playing both machines, and an isolating row asks for one of them alone."""

import time
from collections import Counter

import pytest

from hf_loop.tasks import two_subroutines


COIN, CUPS = ("heads", "tails"), ("ball:1", "ball:2", "ball:3")


def play(words):
    """Play the games with sets and counts, and return the state of the machine that each word moves, after it."""
    heads, ball = words[0] == "heads", int(words[1][-1])
    states = []
    for word in words[2:]:
        if word in ("flip", "keep"):
            heads ^= word == "flip"
            states.append(COIN[not heads])
        else:
            cups = {int(word[0]), int(word[-1])}
            ball = (cups - {ball}).pop() if ball in cups else ball
            states.append(f"ball:{ball}")
    return states, {"coin?": COIN[not heads], "cups?": f"ball:{ball}"}


def words_of(tokenizer, labels):
    return [None if label == -100 else tokenizer.convert_ids_to_tokens(label) for label in labels]


def parts_of(row):
    words = row["prompt"].split()
    questions = [word for word in words if word.endswith("?")]
    return words[: len(words) - len(questions)], questions


@pytest.fixture(scope="module")
def task():
    return two_subroutines(300, 60, 6, min_difficulty=4, num_isolated=200, seed=1)


def test_every_move_is_answered_by_its_own_machine_and_the_question_in_the_end(task):
    splits, tokenizer = task
    questions_seen = Counter()
    for row in splits["train"]:
        words, questions = parts_of(row)
        states, ends = play(words)
        assert row["answer"].split() == [ends[question] for question in questions]
        assert words_of(tokenizer, row["labels"]) == [None] * 4 + states + row["answer"].split()
        # the states in the middle are asked and not told
        told = row["answer"].split()[-1]
        assert tokenizer(f"{row['prompt']} {told}")["input_ids"] == row["input_ids"]
        assert row["difficulty"] == len(words) - 2
        questions_seen[tuple(questions)] += 1
    assert min(questions_seen[key] for key in (("coin?",), ("cups?",), ("coin?", "cups?"))) > 70


@pytest.mark.parametrize(("name", "states", "question"), [("a", COIN, "coin?"), ("b", CUPS, "cups?")])
def test_rows_of_one_subroutine_label_nothing_of_the_other(task, name, states, question):
    splits, tokenizer = task
    for split in (splits[f"train_{name}"], splits[f"test_{name}"]):
        for row in split:
            words, questions = parts_of(row)
            assert questions == [question]
            played, ends = play(words)
            expected = [None] * 4 + [state if state in states else None for state in played] + [ends[question]]
            assert words_of(tokenizer, row["labels"]) == expected
    # both machines are in the text all the same
    moved = {word for prompt in splits[f"test_{name}"]["prompt"] for word in prompt.split()}
    assert {"flip", "keep", "1<->2", "1<->3", "2<->3"} <= moved


def test_no_game_of_a_test_split_is_in_a_training_split_whatever_the_question_and_the_seed(task):
    def games(splits, *names):
        return {" ".join(parts_of(row)[0]) for name in names for row in splits[name]}

    other = two_subroutines(3000, 60, 5, min_difficulty=4, num_isolated=200, seed=2)[0]
    tested = games(task[0], "test", "test_a", "test_b")
    assert not tested & games(task[0], "train", "train_a", "train_b")
    assert not tested & games(other, "train", "train_a", "train_b")


def test_the_seed_decides_and_isolated_rows_are_made_on_demand(task):
    assert two_subroutines(300, 60, 6, min_difficulty=4, num_isolated=200, seed=1)[0]["test_a"].to_list() == (
        task[0]["test_a"].to_list()
    )
    assert set(two_subroutines(3, 4, 6, test_difficulties=[6])[0]) == {"train", "test", "test_a", "test_b"}
    with pytest.raises(ValueError, match="num_isolated must be"):
        two_subroutines(3, 4, num_isolated=-1)


def test_ten_thousand_rows_take_seconds():
    start = time.process_time()
    two_subroutines(10_000, 64, test_difficulties=[8])
    assert time.process_time() - start < 5


def test_shorter_texts_than_those_of_training_are_not_tested():
    assert set(two_subroutines(3, 4, 6)[0]["test"]["difficulty"]) == {6}
    with pytest.raises(ValueError, match=r"^test_difficulties must be at least difficulty=6, got \[4, 6\]"):
        two_subroutines(3, 4, 6, test_difficulties=[4, 6])
