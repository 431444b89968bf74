"""Largest sums, found again by trying all choices."""

from itertools import product

import pytest

from hf_loop.tasks import ComputationGraph, non_adjacent_sum
from hf_loop.tasks.non_adjacent_sum import non_adjacent_sum_row


def best_marks(numbers):
    """The marks of the largest sum; of several, the first in lexicographic order."""
    choices = [marks for marks in product((1, 2), repeat=len(numbers)) if (1, 1) not in zip(marks, marks[1:])]
    return min(choices, key=lambda marks: (-sum(n for n, mark in zip(numbers, marks) if mark == 1), marks))


def test_answers_are_the_best_of_all_choices():
    splits, tokenizer = non_adjacent_sum(200, 40, 6, min_difficulty=3, test_difficulties=[4, 9], seed=2)
    for row in [*splits["train"], *splits["test"]]:
        numbers = [int(word) for word in row["prompt"].removesuffix(" =").split()]
        assert row["difficulty"] == len(numbers)
        assert tuple(map(int, row["answer"].split())) == best_marks(numbers)
        words = ["<bos>", *row["prompt"].split(), *row["answer"].split()]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == words
        assert row["labels"] == [-100] * (len(numbers) + 2) + row["input_ids"][-len(numbers) :]
        # the vocabulary has every sum
        assert tokenizer.unk_token_id not in tokenizer(row["thoughts"])["input_ids"]
    assert set(splits["train"]["difficulty"]) == {3, 4, 5, 6}
    assert {number for prompt in splits["train"]["prompt"] for number in prompt.split()[:-1]} == set(
        map(str, range(-5, 6))
    )


@pytest.mark.parametrize("length", [1, 2, 3])
def test_all_short_lists(length):
    for numbers in product((-2, 0, 1, 2), repeat=length):
        row = non_adjacent_sum_row(numbers)
        assert tuple(map(int, row.answer)) == best_marks(numbers)


def test_nodes_have_the_values_of_their_words():
    splits, _ = non_adjacent_sum(20, 4, 5)
    for row in [*splits["train"], *splits["test"]]:
        nodes = ComputationGraph.from_json(row["graph"]).nodes
        assert [str(nodes[name].value) for name in row["answer_nodes"]] == row["answer"].split()
        assert [str(nodes[name].value) for name in row["thought_nodes"]] == row["thoughts"].split()


def test_a_row_known_by_hand():
    row = non_adjacent_sum_row([3, 5, 4, -2])
    # dp3 = max(-2, 0), dp2 = max(4, -2, 0), dp1 = max(dp2, 5 + dp3), dp0 = max(dp1, 3 + dp2)
    assert row.thoughts == ["0", "4", "5", "7"]
    assert row.answer == ["1", "2", "1", "2"]
    graph = ComputationGraph.from_json(row.columns["graph"])
    assert {name: node.value for name, node in graph.nodes.items() if node.operation == "not"} == {
        "free1": 0,
        "free2": 1,
        "free3": 0,
    }
    assert [graph.nodes[f"dp{i}"].depth for i in range(4)] == [4, 3, 1, 1]
    # dp3, 5 + dp3, dp1, dp0, equal0, free1, chosen1, free2, chosen2, free3, chosen3, mark3
    assert row.columns["graph_depth"] == 12


def test_seed_determines_the_rows_and_splits_are_disjoint():
    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    for seed in range(4):
        splits, again = (non_adjacent_sum(80, 8, 2, min_difficulty=2, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(splits["train"]["prompt"])
        test.update(splits["test"]["prompt"])
    assert len(train) > 60 and len(test) > 8
    assert not train & test


def test_more_test_lists_than_there_are_are_refused():
    with pytest.raises(ValueError, match="num_test must be lower"):
        non_adjacent_sum(4, 100, 2, min_difficulty=2)
    with pytest.raises(ValueError, match="difficulty must be an integer of at least 1, got 0"):
        non_adjacent_sum(4, 4, 0)
