"""Products, multiplied again as numbers, and their graphs."""

import pytest

from hf_loop.tasks import ComputationGraph, multiplication
from hf_loop.tasks.multiplication import multiplication_row


def number(words):
    """A number whose digits are written from the least significant one on."""
    return int("".join(reversed(words)))


@pytest.mark.parametrize("reverse_digits", [True, False])
@pytest.mark.parametrize("first_digits", [None, 4])
def test_answers_and_thoughts_are_the_products(first_digits, reverse_digits):
    options = {"first_digits": first_digits, "reverse_digits": reverse_digits, "test_difficulties": [2, 5]}
    splits, tokenizer = multiplication(60, 12, 3, **options, seed=1)
    order = 1 if reverse_digits else -1
    for row in [*splits["train"], *splits["test"]]:
        first, second = (part.split()[::order] for part in row["prompt"].removesuffix(" =").split(" * "))
        assert len(second) == row["difficulty"] and len(first) == (first_digits or len(second))
        assert number(row["answer"].split()[::order]) == number(first) * number(second)
        assert len(row["answer"].split()) == len(first) + len(second)
        expected = []
        for place in range(len(second)):
            expected += [number(first) * int(second[place]), number(first) * number(second[: place + 1])]
        # the product with the first digit is the first sum; the last sum is the answer
        steps = [number(part.split()[::order]) for part in row["thoughts"].split("=")[:-1]]
        assert steps == [expected[0], *expected[2:-1]]
        words = ["<bos>", *row["prompt"].split(), *row["answer"].split()]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == words
        num_asked = len(row["answer"].split())
        assert row["labels"] == [-100] * (len(words) - num_asked) + row["input_ids"][-num_asked:]
        values = {name: node.value for name, node in ComputationGraph.from_json(row["graph"]).nodes.items()}
        assert [str(values[name]) for name in row["answer_nodes"]] == row["answer"].split()
        assert [str(values[n]) if n else "=" for n in row["thought_nodes"]] == row["thoughts"].split()


def test_a_graph_known_by_hand():
    row = multiplication_row(98, 76, (2, 2), reverse_digits=True)
    assert row.prompt == ["8", "9", "*", "6", "7", "="] and row.answer == ["8", "4", "4", "7"]
    # 98 * 6 = 588 and 98 * 7 = 686
    assert row.thoughts == ["8", "8", "5", "=", "6", "8", "6", "="]
    graph = ComputationGraph.from_json(row.columns["graph"])
    assert {name: node.value for name, node in graph.nodes.items() if node.parents} == {
        **{"product0.0": 48, "partial0.0": 8, "rest0.0": 4, "product0.1": 54, "carried0.1": 58, "partial0.1": 8},
        **{"rest0.1": 5, "product1.0": 56, "partial1.0": 6, "rest1.0": 5, "product1.1": 63, "carried1.1": 68},
        **{"partial1.1": 8, "rest1.1": 6, "sum1.0": 14, "digit1.0": 4, "carry1.0": 1, "sum1.1": 14, "digit1.1": 4},
        **{"carry1.1": 1, "sum1.2": 7},
    }
    assert row.columns["answer_nodes"] == ["partial0.0", "digit1.0", "digit1.1", "sum1.2"]
    # product0.0, rest0.0, carried0.1, partial0.1, sum1.0, carry1.0, sum1.1, carry1.1, sum1.2
    assert row.columns["graph_depth"] == graph.nodes["sum1.2"].depth == 9


def test_both_orders_of_the_factors_are_in_one_split():
    def factors(split):
        return {frozenset(prompt.removesuffix(" =").split(" * ")) for prompt in split["prompt"]}

    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    for seed in range(4):
        splits, again = (multiplication(60, 3, 1, min_difficulty=1, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train |= factors(splits["train"])
        test |= factors(splits["test"])
    assert len(train) > 30 and len(test) > 3
    assert not train & test


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="first_digits must be an integer of at least 1, got 0"):
        multiplication(4, 4, 2, first_digits=0)
    with pytest.raises(ValueError, match="num_test must be lower"):
        multiplication(4, 40, 1, min_difficulty=1)
