"""The report on answers that are right, wrong in one word, or missing."""

import pytest

from hf_loop.evaluation import accuracy_by_shape, compositionality, node_errors, node_values, read_graphs
from hf_loop.evaluation.compositionality import ShapeAccuracy
from hf_loop.tasks import ComputationGraph, addition, coin_flips, i_gsm, multiplication, non_adjacent_sum
from hf_loop.tasks.addition import addition_row


def chain(length):
    graph = ComputationGraph()
    name = graph.add_input("x0", 1)
    for i in range(1, length + 1):
        name = graph.add(f"x{i}", "add", name, "x0")
    return graph


def test_accuracy_by_depth_and_width():
    wide = chain(2)
    wide.add("y", "add", "x0")
    graphs, answers = [chain(2), wide, chain(3)], [["x1", "x2"], ["x1", "x2"], ["x3"]]
    # right; half right; a node without a value is wrong
    predicted = [{"x1": 2, "x2": 3}, {"x1": 2, "x2": 4}, {}]
    assert accuracy_by_shape(graphs, answers, predicted) == [
        ShapeAccuracy(2, 2, exact=0.5, partial=0.75),
        ShapeAccuracy(3, 1, exact=0.0, partial=0.0),
    ]
    assert accuracy_by_shape(graphs, answers, predicted, "width") == [
        ShapeAccuracy(1, 2, exact=0.5, partial=0.5),
        ShapeAccuracy(2, 1, exact=0.0, partial=0.5),
    ]


def test_right_thoughts_and_answers():
    splits, _ = addition(60, 30, 3, num_digits=2)
    rows = splits["test"]
    predicted = [
        node_values(f"{row['thoughts']} {row['answer']}", row["thought_nodes"] + row["answer_nodes"]) for row in rows
    ]
    found = compositionality(rows, predicted, splits["train"])
    assert all(entry.exact == entry.partial == 1 for entry in found.by_depth + found.by_width)
    assert sum(entry.num_rows for entry in found.by_depth) == sum(entry.num_rows for entry in found.by_width) == 30
    # of 2 operands of two digits: sum, carry, sum, carry; of 3: a sum, a carry and a sum more
    assert [entry.size for entry in found.by_depth] == [4, 7]
    assert all(entry.wrong is None and entry.num_wrong == 0 for entry in found.frequencies)
    assert [entry.depth for entry in found.frequencies] == [2, 4, 6, 7]
    assert [entry.depth for entry in found.errors] == [2, 4, 6, 7]
    assert all(entry.shares["correct"] == 1 for entry in found.errors)
    assert {entry.difficulty for entry in found.guesses} == {2, 3}
    assert all(entry.accuracy == 1 for entry in found.guesses)


def test_a_wrong_digit_in_the_thoughts_of_a_sum():
    # 21 + 43 = 64 and 64 + 65 = 129; with 65 in place of 64 the sum is 130, and with the right last digit 139
    row = addition_row([21, 43, 65], num_digits=2, reverse_digits=True)
    graph = ComputationGraph.from_json(row.columns["graph"])
    nodes = row.columns["thought_nodes"] + row.columns["answer_nodes"]
    assert node_errors(graph, node_values("5 6 0 = 0 3 1", nodes)) == {
        **{"digit1.0": "local", "digit1.1": "correct", "carry1.1": "correct"},
        # 5 + 5 carries, and 6 + 6 + 1 carries too, as it should
        **{"digit2.0": "propagated", "digit2.1": "propagated", "sum2.2": "correct"},
    }
    assert node_errors(graph, node_values("5 6 0 = 9 3 1", nodes))["digit2.0"] == "restored"


def test_wrong_answers_in_a_report():
    rows = addition(40, 1, 2, num_digits=1)[0]["train"]
    graphs = list(read_graphs(rows))
    # sums are right, digits are one too high, carries are never 1
    predicted = []
    for graph in graphs:
        total = graph.nodes["sum1.0"].value
        predicted.append({"sum1.0": total, "digit1.0": total % 10 + 1, "carry1.0": 0})
    found = compositionality(rows, predicted, rows)
    carries = [graph.nodes["carry1.0"].value for graph in graphs]
    assert 0 < sum(carries) < len(carries)
    share = 1 - sum(carries) / len(carries)
    (depth,) = found.by_depth
    assert depth.exact == 0 and depth.partial == pytest.approx(share / 2)
    sums, parts = found.errors
    assert sums.shares["correct"] == 1
    assert parts.shares["correct"] == pytest.approx(share / 2)
    assert parts.shares["local"] == pytest.approx(1 - share / 2)
    assert [(guess.position, guess.accuracy) for guess in found.guesses] == [(0, 0), (1, pytest.approx(share))]
    text = found.to_markdown(level=3)
    assert text.startswith("### Compositionality\n\n#### Accuracy by depth of the graph\n\n| depth | rows | exact |")
    assert f"| 2 | {len(rows)} | 0.000 | {share / 2:.3f} |" in text
    assert f"| 1 | {len(rows)} | 1.000 | 0.000 | 0.000 | 0.000 |" in text
    assert "#### Occurrences of a node's computation in training rows" in text
    # every sum occurs at least once, in its own row, and none is wrong
    occurrences = found.frequencies[0].right
    assert occurrences >= 1 and f"| 1 | {len(rows)} | {occurrences:.2f} | 0 | – |" in text
    assert "#### What single inputs tell" in text and "| 2 | 1 | 0.000 | x" in text


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (multiplication, {"difficulty": 2}),
        (non_adjacent_sum, {"difficulty": 4}),
        (i_gsm, {"difficulty": 2, "num_variables": 6}),
    ],
)
def test_reports_of_other_tasks(task, options):
    splits, _ = task(30, 12, **options)
    rows = splits["test"]
    predicted = [node_values(row["answer"], row["answer_nodes"]) for row in rows]
    found = compositionality(rows, predicted, splits["train"])
    assert all(entry.exact == 1 for entry in found.by_depth)
    assert {entry.size for entry in found.by_depth} == set(rows["graph_depth"])
    assert {entry.size for entry in found.by_width} == set(rows["graph_width"])
    # the inputs of i-GSM differ from row to row
    assert bool(found.guesses) == (task is not i_gsm)
    assert ("### What single inputs tell" in found.to_markdown()) == (task is not i_gsm)


def test_what_does_not_fit_is_refused():
    splits, _ = addition(4, 4, 2)
    with pytest.raises(ValueError, match="predicted must have the values of 4 rows, got 3"):
        compositionality(splits["test"], [{}] * 3, splits["train"])
    flips = coin_flips(4, 4, 4)[0]["test"]
    with pytest.raises(ValueError, match="rows must be of a task with graphs, got the columns"):
        list(read_graphs(flips))
