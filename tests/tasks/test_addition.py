"""Sums, added again as numbers, and their graphs."""

import pytest

from hf_loop.tasks import ComputationGraph, addition
from hf_loop.tasks.addition import addition_row


def number(words):
    """A number whose digits are written from the least significant one on."""
    return int("".join(reversed(words)))


def node_values(row):
    return {name: node.value for name, node in ComputationGraph.from_json(row["graph"]).nodes.items()}


@pytest.mark.parametrize("reverse_digits", [True, False])
def test_answers_and_thoughts_are_the_sums(reverse_digits):
    options = {"num_digits": 2, "reverse_digits": reverse_digits, "test_difficulties": [2, 13]}
    splits, tokenizer = addition(80, 20, 5, **options, seed=1)
    order = 1 if reverse_digits else -1
    for row in [*splits["train"], *splits["test"]]:
        operands = [number(part.split()[::order]) for part in row["prompt"].removesuffix(" =").split(" + ")]
        assert row["difficulty"] == len(operands)
        assert number(row["answer"].split()[::order]) == sum(operands)
        # as many digits as the largest sum of so many operands
        assert len(row["answer"].split()) == len(str(99 * len(operands)))
        totals = [number(part.split()[::order]) for part in row["thoughts"].split("=")[:-1]]
        assert totals == [sum(operands[: i + 1]) for i in range(1, len(operands) - 1)]
        words = ["<bos>", *row["prompt"].split(), *row["answer"].split()]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == words
        num_asked = len(row["answer"].split())
        assert row["labels"][-num_asked:] == row["input_ids"][-num_asked:]
        assert set(row["labels"][:-num_asked]) == {-100}
    assert set(splits["train"]["difficulty"]) == {2, 3, 4, 5} and splits["test"]["difficulty"] == [2] * 10 + [13] * 10


@pytest.mark.parametrize("reverse_digits", [True, False])
def test_nodes_have_the_values_of_their_words(reverse_digits):
    splits, _ = addition(40, 8, 12, min_difficulty=9, num_digits=2, reverse_digits=reverse_digits)
    for row in [*splits["train"], *splits["test"]]:
        values = node_values(row)
        assert [str(values[name]) for name in row["answer_nodes"]] == row["answer"].split()
        words = row["thoughts"].split()
        assert len(words) == len(row["thought_nodes"])
        for word, name in zip(words, row["thought_nodes"]):
            assert word == (str(values[name]) if name else "=")


def test_a_graph_known_by_hand():
    row = addition_row([21, 43, 65], num_digits=2, reverse_digits=True)
    assert row.prompt == ["1", "2", "+", "3", "4", "+", "5", "6", "="]
    assert row.answer == ["9", "2", "1"] and row.thoughts == ["4", "6", "0", "="]
    graph = ComputationGraph.from_json(row.columns["graph"])
    # 1+3, its digit and carry, 2+4, its digit and carry (the third digit of the sum); the same again but for the last
    # place, where a digit of the sum is all there is to add to the carry
    computed = {name: node.value for name, node in graph.nodes.items() if node.parents}
    assert computed == {
        **{"sum1.0": 4, "digit1.0": 4, "carry1.0": 0, "sum1.1": 6, "digit1.1": 6, "carry1.1": 0},
        **{"sum2.0": 9, "digit2.0": 9, "carry2.0": 0, "sum2.1": 12, "digit2.1": 2, "carry2.1": 1, "sum2.2": 1},
    }
    assert row.columns["answer_nodes"] == ["digit2.0", "digit2.1", "sum2.2"]
    assert row.columns["thought_nodes"] == ["digit1.0", "digit1.1", "carry1.1", ""]
    # of sum1.0, carry1.0, sum1.1, digit1.1, sum2.1, carry2.1, sum2.2
    assert row.columns["graph_depth"] == graph.depth == 7
    assert row.columns["graph_width"] == graph.width == 6


def test_every_order_of_the_operands_is_in_one_split():
    def sums(split):
        return {tuple(sorted(prompt.removesuffix(" =").split(" + "))) for prompt in split["prompt"]}

    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    for seed in range(4):
        splits, again = (addition(80, 4, 2, num_digits=1, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train |= sums(splits["train"])
        test |= sums(splits["test"])
    assert len(train) > 30 and len(test) > 3
    assert not train & test


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_digits": 0}, "num_digits must be an integer of at least 1, got 0"),
        ({"min_difficulty": 1}, "min_difficulty must be an integer of at least 2, got 1"),
        ({"test_difficulties": [3, 1]}, r"test_difficulties\[1\] must be an integer of at least 2, got 1"),
        ({"difficulty": 1}, "difficulty must be at least min_difficulty=2, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        addition(4, 4, **options)
