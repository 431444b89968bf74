"""Errors and frequencies of nodes, counted by hand."""

import pytest

from hf_loop.evaluation import errors_by_depth, node_errors, node_values, subgraph_frequencies
from hf_loop.evaluation.compositionality_errors import DepthErrors, DepthFrequency
from hf_loop.tasks import ComputationGraph


def make_graph(first, second):
    """Two digits, their sum, and its digit and carry: depths 0, 0, 1, 2, 2."""
    graph = ComputationGraph()
    graph.add_input("x", first)
    graph.add_input("y", second)
    graph.add("sum", "add", "x", "y")
    graph.add("digit", "residual", "sum")
    graph.add("carry", "carry", "sum")
    return graph


def test_values_of_words():
    assert node_values("4 -2 = 17", ["a", "b", "", "c"]) == {"a": 4, "b": -2, "c": 17}
    # a word that is no number, one that is missing, and one too many
    assert node_values("x 2", ["a", "b", "c"]) == {"b": 2}
    assert node_values("1 2", ["a"]) == {"a": 1}
    assert node_values("", ["a"]) == {}


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ({"sum": 15, "digit": 5, "carry": 1}, {"sum": "correct", "digit": "correct", "carry": "correct"}),
        # 16 for 7 + 8; its digit would be 6, its carry is the right one
        ({"sum": 16, "digit": 6, "carry": 1}, {"sum": "local", "digit": "propagated", "carry": "restored"}),
        # neither the right digit nor that of 16
        ({"sum": 16, "digit": 7, "carry": 1}, {"sum": "local", "digit": "local", "carry": "restored"}),
        # a wrong value of right parents
        ({"sum": 15, "digit": 6, "carry": 1}, {"sum": "correct", "digit": "local", "carry": "correct"}),
        # the model copied an input wrong, and added right
        ({"x": 9, "sum": 17, "digit": 5}, {"sum": "propagated", "digit": "restored"}),
        # a sum that is not given is the right one
        ({"digit": 5, "carry": 3}, {"digit": "correct", "carry": "local"}),
        # or the right one of a wrong input: 9 + 8
        ({"x": 9, "digit": 7, "carry": 1}, {"digit": "propagated", "carry": "restored"}),
        ({"sum": 15}, {"sum": "correct"}),
        ({}, {}),
    ],
)
def test_classes_of_errors(predicted, expected):
    assert node_errors(make_graph(7, 8), predicted) == expected


def test_errors_by_depth():
    graphs = [make_graph(7, 8), make_graph(1, 2)]
    predicted = [{"sum": 16, "digit": 6, "carry": 1}, {"sum": 3, "digit": 4}]
    assert errors_by_depth(graphs, predicted) == [
        DepthErrors(1, 2, {"correct": 0.5, "local": 0.5, "propagated": 0.0, "restored": 0.0}),
        DepthErrors(2, 3, {"correct": 0.0, "local": 1 / 3, "propagated": 1 / 3, "restored": 1 / 3}),
    ]


def test_frequencies_of_right_and_wrong_nodes():
    training = [make_graph(7, 8), make_graph(8, 7), make_graph(9, 6), make_graph(1, 2)]
    graphs = [make_graph(7, 8), make_graph(9, 9), make_graph(1, 2)]
    predicted = [{"sum": 15, "digit": 5, "carry": 0}, {"sum": 18}, {"x": 1, "sum": 4, "digit": 3}]
    # 7 + 8 occurs twice, in either order; 9 + 6 is another computation; 9 + 9 does not occur, 1 + 2 once
    assert subgraph_frequencies(graphs, predicted, iter(training)) == [
        DepthFrequency(depth=1, num_right=2, right=(2 + 0) / 2, num_wrong=1, wrong=1.0),
        DepthFrequency(depth=2, num_right=2, right=(2 + 1) / 2, num_wrong=1, wrong=2.0),
    ]
    assert subgraph_frequencies(graphs[1:2], [{"sum": 17}], []) == [DepthFrequency(1, 0, None, 1, 0.0)]


def test_values_of_other_nodes_are_refused():
    graph = make_graph(1, 2)
    with pytest.raises(ValueError, match="values of nodes of the graph only, got 'other'"):
        node_errors(graph, {"sum": 3, "other": 3})
    with pytest.raises(ValueError, match="values of nodes of the graph only, got 'other'"):
        subgraph_frequencies([graph], [{"other": 3}], [])
    with pytest.raises(ValueError):
        errors_by_depth([graph], [])
