"""Graphs small enough to be followed by hand."""

import pytest

from hf_loop.tasks import ComputationGraph
from hf_loop.tasks.computation_graph import apply_operation


def make_graph():
    """(3 + 4) * (4 - 3) and its remainder by ten: two inputs, two nodes of depth 1, one of depth 2 and one of 3."""
    graph = ComputationGraph()
    for name, value in (("a", 3), ("b", 4)):
        graph.add_input(name, value)
    graph.add("sum", "add", "a", "b")
    graph.add("difference", "subtract", "b", "a")
    graph.add("product", "multiply", "sum", "difference")
    graph.add("last", "residual", "product")
    return graph


def test_values_and_depths():
    graph = make_graph()
    assert {name: (node.value, node.depth) for name, node in graph.nodes.items()} == {
        **{"a": (3, 0), "b": (4, 0), "sum": (7, 1), "difference": (1, 1), "product": (7, 2), "last": (7, 3)}
    }
    assert graph.depth == 3 and graph.average_parallelism == 2
    # the depth of a node is that of its longest path, not of its shortest
    graph.add("late", "add", "a", "last")
    assert graph.nodes["late"].depth == graph.depth == 4


def test_width_is_the_number_of_nodes_of_the_most_frequent_depth():
    graph = make_graph()
    assert graph.width == 2
    graph.add("other", "add", "a", "a")
    assert graph.width == 3
    assert ComputationGraph().width == ComputationGraph().depth == 0


def test_ancestors_are_in_order():
    graph = make_graph()
    assert graph.ancestors("product") == ["a", "b", "sum", "difference"]
    assert graph.ancestors("a") == []


def test_equal_computations_have_equal_keys():
    graph = make_graph()
    other = ComputationGraph()
    # other names, another order of inputs and of the parents of a sum; 7 by another way
    for name, value in (("y", 4), ("x", 3), ("seven", 7)):
        other.add_input(name, value)
    other.add("s", "add", "y", "x")
    other.add("d", "subtract", "y", "x")
    other.add("p", "multiply", "d", "s")
    other.add("q", "multiply", "d", "seven")
    keys, others = graph.subgraph_keys(), other.subgraph_keys()
    assert [others[name] for name in ("x", "s", "d", "p")] == [keys[n] for n in ("a", "sum", "difference", "product")]
    # the value and the operation are the same, what it follows from is not
    assert others["q"] != others["p"]
    reverse = ComputationGraph()
    reverse.add_input("a", 4)
    reverse.add_input("b", 4)
    reverse.add("d", "subtract", "a", "b")
    reverse.add("e", "add", "a", "b")
    assert len(set(reverse.subgraph_keys().values())) == 3


def test_an_ordered_operation_is_not_its_reverse():
    graph = ComputationGraph()
    graph.add_input("a", 2)
    graph.add_input("b", 9)
    graph.add("first", "subtract mod 7", "a", "b")
    graph.add("second", "subtract mod 7", "b", "a")
    assert graph.nodes["first"].value == graph.nodes["second"].value == 0
    assert graph.subgraph_keys()["first"] != graph.subgraph_keys()["second"]


def test_json_and_back():
    graph = make_graph()
    text = graph.to_json()
    assert text.startswith('[["a","input",3,[]],["b","input",4,[]],["sum","add",7,[0,1]]')
    assert ComputationGraph.from_json(text).nodes == graph.nodes
    with pytest.raises(ValueError, match="value of 'sum' must be 7, got 8"):
        ComputationGraph.from_json(text.replace('"add",7', '"add",8'))


@pytest.mark.parametrize(
    ("operation", "values", "result"),
    [
        ("add", [2, 3, 4], 9),
        ("subtract", [2, 5], -3),
        ("subtract mod 7", [2, 5], 4),
        ("multiply mod 7", [5, 3], 1),
        ("carry", [27], 2),
        ("residual", [27], 7),
        ("max with 0", [-2, -1], 0),
        ("max with 0", [-2, 4], 4),
        ("equal", [3, 3], 1),
        ("equal", [3, 4], 0),
        ("and", [1, 0], 0),
        ("and", [1, 1], 1),
        ("not", [0], 1),
        ("mark", [1], 1),
        ("mark", [0], 2),
    ],
)
def test_operations(operation, values, result):
    assert apply_operation(operation, values) == result


def test_what_is_no_graph_is_refused():
    graph = make_graph()
    with pytest.raises(ValueError, match="got 'sum' twice"):
        graph.add("sum", "add", "a", "b")
    with pytest.raises(ValueError, match="got 'a' twice"):
        graph.add_input("a", 1)
    with pytest.raises(ValueError, match="parents of 'new' must be nodes of the graph"):
        graph.add("new", "add", "a", "missing")
    with pytest.raises(ValueError, match="at least one"):
        graph.add("new", "add")
    with pytest.raises(ValueError, match="operation must be one of .* got 'power'"):
        graph.add("new", "power", "a", "b")
    with pytest.raises(ValueError, match="got 'add mod x'"):
        graph.add("new", "add mod x", "a", "b")
    with pytest.raises(ValueError, match="needs a depth of at least 1"):
        ComputationGraph().average_parallelism  # noqa: B018
