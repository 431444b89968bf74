import numpy as np
import pytest

from hf_loop.tasks import cellular_automaton
from hf_loop.tasks.cellular_automaton import run_rule


def naive_steps(bits, rule, num_steps):
    """The states after each step, told with the eight neighbourhoods written out."""
    following = dict(zip(["111", "110", "101", "100", "011", "010", "001", "000"], f"{rule:08b}", strict=True))
    states = []
    for _ in range(num_steps):
        ring = bits[-1] + bits + bits[0]
        bits = "".join(following[ring[place : place + 3]] for place in range(len(bits)))
        states.append(bits)
    return states


@pytest.mark.parametrize(
    ("rule", "states"),
    [
        # the triangles of Wolfram's pictures, from one live cell
        (30, ["00000100000", "00001110000", "00011001000", "00110111100"]),
        (110, ["00000100000", "00001100000", "00011100000", "00110100000"]),
        (90, ["00000100000", "00001010000", "00010001000", "00101010100"]),
    ],
)
def test_rules_known_by_hand(rule, states):
    start = np.array([list(map(int, states[0]))])
    for step, state in enumerate(states):
        assert "".join(map(str, run_rule(start, rule, step)[0])) == state


def test_a_state_is_a_ring():
    assert run_rule(np.array([1, 0, 0, 0, 0]), 30, 1).tolist() == [1, 1, 0, 0, 1]
    assert run_rule(np.array([0, 0, 1, 0]), 30, 2).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("rule", [30, 110])
def test_every_cell_is_asked_in_one_pass(rule):
    splits, tokenizer = cellular_automaton(60, 12, 4, rule=rule, state_size=12, test_difficulties=[3, 9], seed=1)
    for row in [*splits["train"], *splits["test"]]:
        words = row["prompt"].split()
        num_steps = row["difficulty"]
        assert words[:num_steps] == [">"] * num_steps and words[-12:] == ["?"] * 12
        *between, last = naive_steps("".join(words[num_steps:-12]), rule, num_steps)
        assert row["answer"] == " ".join(last)
        assert row["thoughts"] == " ".join("".join(between))
        # the text has nothing but the last cell; the labels ask at every `?` for what the next position is
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *words, last[-1]]
        assert row["labels"][:-12] == [-100] * (num_steps + 14)
        assert tokenizer.convert_ids_to_tokens(row["labels"][-12:]) == list(last)
        assert tokenizer.convert_ids_to_tokens(row["input_ids"][-13:-1]) == ["?"] * 12


def test_cells_are_about_half_alive():
    answers = "".join(cellular_automaton(500, 6, 6)[0]["train"]["answer"])
    assert 0.45 < answers.count("1") / (answers.count("1") + answers.count("0")) < 0.55


@pytest.mark.parametrize(("name", "value"), [("rule", -1), ("rule", 256), ("rule", 3.0), ("state_size", 2)])
def test_arguments_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        cellular_automaton(4, 4, 2, **{name: value})
