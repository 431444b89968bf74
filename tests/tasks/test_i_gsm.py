"""Definitions, evaluated again from the text of a row."""

import pytest

from hf_loop.tasks import ComputationGraph, i_gsm
from hf_loop.tasks.i_gsm import i_gsm_row


def evaluate(prompt):
    """The value and the depth of what is asked, and how many statements there are."""
    *statements, question = prompt.split(" ; ")
    definitions = dict(statement.split(" := ") for statement in statements)
    assert len(definitions) == len(statements)

    def value_and_depth(word):
        if word not in definitions:
            return int(word), 0
        parts = definitions[word].split()
        if len(parts) == 1:
            return int(parts[0]), 0
        (left, depth_left), (right, depth_right) = value_and_depth(parts[0]), value_and_depth(parts[2])
        result = {"+": left + right, "-": left - right, "*": left * right}[parts[1]] % 7
        return result, 1 + max(depth_left, depth_right)

    return *value_and_depth(question.removesuffix(" ?")), len(statements)


def test_answers_follow_from_the_statements():
    splits, tokenizer = i_gsm(150, 30, 4, num_variables=9, num_names=12, test_difficulties=[2, 4, 8], seed=3)
    for row in [*splits["train"], *splits["test"]]:
        value, depth, num_statements = evaluate(row["prompt"])
        assert row["answer"] == str(value) and row["difficulty"] == depth and num_statements == 9
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *row["prompt"].split(), str(value)]
        assert row["labels"][-1] == row["input_ids"][-1] and set(row["labels"][:-1]) == {-100}
    assert set(splits["train"]["difficulty"]) == {1, 2, 3, 4}
    assert splits["test"]["difficulty"] == [2] * 10 + [4] * 10 + [8] * 10
    assert {str(value) for value in range(7)} == set(splits["train"]["answer"])


def test_the_graph_has_what_is_needed_and_the_thoughts_have_its_values():
    splits, _ = i_gsm(60, 12, 5)
    num_needed = set()
    for row in [*splits["train"], *splits["test"]]:
        graph = ComputationGraph.from_json(row["graph"])
        asked = row["prompt"].split()[-2]
        assert row["answer_nodes"] == [asked] and str(graph.nodes[asked].value) == row["answer"]
        assert graph.depth == graph.nodes[asked].depth == row["difficulty"] == row["graph_depth"]
        assert set(graph.ancestors(asked)) | {asked} == set(graph.nodes)
        words = row["thoughts"].split()
        defined = [name for name in graph.nodes if "." not in name and name != asked]
        assert words[::4] == defined and words[2::4] == [str(graph.nodes[name].value) for name in defined]
        assert [name for name in row["thought_nodes"] if name] == defined == row["thought_nodes"][2::4]
        num_needed.add(len(defined) + 1)
    # of twelve statements
    assert min(num_needed) < 8


def test_a_row_known_by_hand():
    definitions = {"v2": ("3",), "v4": ("5", "*", "6"), "v1": ("v4", "-", "v2"), "v9": ("v2", "+", "1")}
    row = i_gsm_row(definitions, "v1", ["v1", "v9", "v4", "v2"])
    assert " ".join(row.prompt) == "v1 := v4 - v2 ; v9 := v2 + 1 ; v4 := 5 * 6 ; v2 := 3 ; v1 ?"
    assert row.answer == ["6"] and " ".join(row.thoughts) == "v2 := 3 ; v4 := 2 ;"
    graph = ComputationGraph.from_json(row.columns["graph"])
    assert {name: (node.operation, node.value, node.depth) for name, node in graph.nodes.items()} == {
        "v2": ("input", 3, 0),
        "v4.left": ("input", 5, 0),
        "v4.right": ("input", 6, 0),
        "v4": ("multiply mod 7", 2, 1),
        "v1": ("subtract mod 7", 6, 2),
    }


def test_statements_come_in_any_order():
    splits, _ = i_gsm(100, 1, 1, num_variables=2, num_names=2)
    prompts = splits["train"]["prompt"]
    # the only variable that is a number comes first or last
    assert 20 < sum(len(prompt.split(" ; ")[0].split()) == 3 for prompt in prompts) < 80


def test_seed_determines_the_rows_and_splits_are_disjoint():
    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    for seed in range(3):
        splits, again = (i_gsm(150, 10, 1, num_variables=2, num_names=2, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(splits["train"]["prompt"])
        test.update(splits["test"]["prompt"])
    assert len(train) > 100 and len(test) > 10
    assert not train & test


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_variables": 4}, "num_variables must be an integer of at least 5, got 4"),
        ({"test_difficulties": [3, 12]}, "num_variables must be an integer of at least 13, got 12"),
        ({"num_names": 11}, "num_names must be an integer of at least 12, got 11"),
        ({"difficulty": 0}, "difficulty must be an integer of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        i_gsm(8, 8, **{"difficulty": 4} | options)
