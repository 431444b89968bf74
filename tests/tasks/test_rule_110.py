"""Rule 110, run again cell by cell."""

import numpy as np
import pytest

from hf_loop.tasks import rule_110, rule_110_accuracy


# what becomes of a cell, by its left neighbour, itself and its right neighbour
TABLE = {"111": "0", "110": "1", "101": "1", "100": "0", "011": "1", "010": "1", "001": "1", "000": "0"}


def step(state: str) -> str:
    size = len(state)
    return "".join(TABLE[state[i - 1] + state[i] + state[(i + 1) % size]] for i in range(size))


@pytest.mark.parametrize("num_steps", [0, 1, 3, 9])
def test_answers_agree_with_the_table_of_the_rule(num_steps):
    splits, tokenizer = rule_110(30, 10, num_steps, num_states=3, state_size=7, seed=1)
    answers = set()
    for row in [*splits["train"], *splits["test"]]:
        words = tokenizer.convert_ids_to_tokens(row["input_ids"])
        bits, asked = words[:21], words[21:]
        assert asked[::2] == ["?0", "?1", "?2"]
        for index, answer in enumerate(asked[1::2]):
            state = "".join(bits[7 * index : 7 * index + 7])
            for _ in range(num_steps):
                state = step(state)
            assert answer == state[0]
            answers.add(answer)
        labelled = [place for place, label in enumerate(row["labels"]) if label != -100]
        assert labelled == [22, 24, 26]
        assert all(row["labels"][place] == row["input_ids"][place] for place in labelled)
    assert answers == {"0", "1"}


def test_seed_determines_the_rows_and_splits_are_disjoint():
    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    for seed in range(4):
        splits, again = (rule_110(80, 8, 1, num_states=1, state_size=6, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(map(tuple, splits["train"]["input_ids"]))
        test.update(map(tuple, splits["test"]["input_ids"]))
    assert len(train) > 30 and len(test) > 4
    assert not train & test


def test_accuracy_and_guessing():
    rows = rule_110(1, 200, 4, num_states=2, state_size=8)[0]["test"]
    labels = np.array([[label for label in row if label != -100] for row in rows["labels"]])
    predictions = labels.copy()
    predictions[:50, 1] = 9 - predictions[:50, 1]  # the other bit, of the ids 4 and 5
    shares = rule_110_accuracy(predictions, rows)
    assert (shares["exact"], shares["bits"]) == (0.75, 0.875)
    most = max(labels.ravel().tolist().count(bit) for bit in (4, 5)) / labels.size
    assert shares["bits_by_guessing"] == pytest.approx(most)
    assert shares["exact_by_guessing"] < shares["bits_by_guessing"] < 0.75
    with pytest.raises(ValueError, match=r"predictions must have the shape \(200, 2\)"):
        rule_110_accuracy(labels[:, 1:], rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": -1}, "num_steps must be an integer of at least 0, got -1"),
        ({"num_states": 0}, "num_states must be an integer of at least 1, got 0"),
        ({"num_states": 4, "state_size": 7}, "state_size must be at least 8, .* got 7"),
        ({"num_states": True}, "num_states must be an integer of at least 1, got True"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rule_110(4, 4, **options)
