"""The graph of a computation: which intermediate values an answer follows from, and by which operations.

Tasks such as [`addition`] keep the graph of every row, in the columns of [`graph_columns`]. What a model answers can
then be compared with every value on the way: see "Faith and Fate: Limits of Transformers on Compositionality"
(https://huggingface.co/papers/2305.18654), whose depth, width and average parallelism these are.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


INPUT = "input"
# of the values of a node's parents, in their order
OPERATIONS: dict[str, Callable[[Sequence[int]], int]] = {
    "add": sum,
    "subtract": lambda values: values[0] - values[1],
    "multiply": math.prod,
    "carry": lambda values: values[0] // 10,
    "residual": lambda values: values[0] % 10,
    "max with 0": lambda values: max(0, *values),
    "equal": lambda values: int(values[0] == values[1]),
    "and": lambda values: int(all(values)),
    "not": lambda values: int(not values[0]),
    # the marks of a list's chosen items and of the others
    "mark": lambda values: 1 if values[0] else 2,
}
# equal in any order of the parents
COMMUTATIVE = frozenset({"add", "multiply", "max with 0", "equal", "and"})
MODULO = " mod "


class Node(NamedTuple):
    """A value of a computation.

    Args:
        name (`str`): its name, of which there is one in a graph.
        operation (`str`): how it follows from its parents' values, see [`apply_operation`]; `"input"` if it is given.
        parents (`tuple[str, ...]`): the names of the nodes it follows from.
        value (`int`): the value.
        depth (`int`): operations on the longest path to it from an input; 0 for an input.
    """

    name: str
    operation: str
    parents: tuple[str, ...]
    value: int
    depth: int


def apply_operation(operation: str, values: Sequence[int]) -> int:
    """Compute the value of a node from values of its parents, right or wrong ones.

    Args:
        operation (`str`): one of `OPERATIONS`; with the ending `" mod N"` its remainder.
        values (`Sequence[int]`): the values of the parents, in their order.

    Raises:
        ValueError: if there is no such operation.
    """
    if operation in OPERATIONS:
        return OPERATIONS[operation](values)
    name, _, modulus = operation.partition(MODULO)
    if name not in OPERATIONS or not modulus.isdigit():
        raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, also mod N, got {operation!r}")
    return OPERATIONS[name](values) % int(modulus)


class ComputationGraph:
    """A graph that is built from its inputs on, so that its nodes are in topological order.

    Example:

    ```python
    graph = ComputationGraph()
    for name, digit in (("a", 7), ("b", 8)):
        graph.add_input(name, digit)
    graph.add("sum", "add", "a", "b")
    graph.add("carry", "carry", "sum")
    graph.nodes["carry"].value  # 1
    ```
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def add_input(self, name: str, value: int) -> str:
        """Add a value that is given, and return its name.

        Raises:
            ValueError: if there is a node of that name.
        """
        self._check_new(name)
        self.nodes[name] = Node(name, INPUT, (), value, 0)
        return name

    def add(self, name: str, operation: str, *parents: str) -> str:
        """Add the value that an operation gives of other nodes' values, and return its name.

        Args:
            name (`str`): the name of the node.
            operation (`str`): see [`apply_operation`].
            parents (`str`): the names of the nodes it is computed from, in order.

        Raises:
            ValueError: if there is a node of that name, no such operation, no parent or no node of a parent's name.
        """
        self._check_new(name)
        if not parents or any(parent not in self.nodes for parent in parents):
            raise ValueError(f"parents of {name!r} must be nodes of the graph, at least one, got {parents}")
        nodes = [self.nodes[parent] for parent in parents]
        value = apply_operation(operation, [node.value for node in nodes])
        self.nodes[name] = Node(name, operation, parents, value, 1 + max(node.depth for node in nodes))
        return name

    def _check_new(self, name: str) -> None:
        if name in self.nodes:
            raise ValueError(f"name must not be that of another node, got {name!r} twice")

    @property
    def depth(self) -> int:
        """Operations on the longest path."""
        return max((node.depth for node in self.nodes.values()), default=0)

    @property
    def width(self) -> int:
        """Nodes of the depth that most nodes have (the mode), inputs included."""
        return max(Counter(node.depth for node in self.nodes.values()).values(), default=0)

    @property
    def average_parallelism(self) -> float:
        """Nodes over depth.

        Raises:
            ValueError: if there is no operation, so that the depth is 0.
        """
        if not self.depth:
            raise ValueError("the average parallelism needs a depth of at least 1, got a graph without operations")
        return len(self.nodes) / self.depth

    def ancestors(self, name: str) -> list[str]:
        """Return the names of all nodes that a node follows from, in topological order, without its own."""
        found: set[str] = set()
        open_nodes = [name]
        while open_nodes:
            parents = [parent for parent in self.nodes[open_nodes.pop()].parents if parent not in found]
            found.update(parents)
            open_nodes += parents
        return [other for other in self.nodes if other in found]

    def subgraph_keys(self) -> dict[str, str]:
        """Return for each node a text that stands for it with all it follows from: operations and values.

        Two nodes, of one graph or of two, have the same key if the same operations on the same values lead to them,
        whatever the names. Parents are in no order where the operation has none. So how often the computation of a
        node occurs in other rows can be counted. The keys are hashes of the unrolled computation, which may be
        exponentially larger than the graph.
        """
        keys: dict[str, str] = {}
        for name, node in self.nodes.items():
            parents = [keys[parent] for parent in node.parents]
            if node.operation.partition(MODULO)[0] in COMMUTATIVE:
                parents.sort()
            text = f"{node.operation} {node.value} {' '.join(parents)}"
            keys[name] = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        return keys

    def to_json(self) -> str:
        """Return the graph as a column of a row holds it: for each node its name, operation, value and parents.

        Parents are given by their places in the list.
        """
        places = {name: place for place, name in enumerate(self.nodes)}
        rows = [
            [node.name, node.operation, node.value, [places[parent] for parent in node.parents]]
            for node in self.nodes.values()
        ]
        return json.dumps(rows, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "ComputationGraph":
        """Read a graph that [`~ComputationGraph.to_json`] wrote, such as the column `graph` of a row.

        Raises:
            ValueError: if a value is not what the operation gives.
        """
        graph, names = cls(), []
        for name, operation, value, parents in json.loads(text):
            if operation == INPUT:
                graph.add_input(name, value)
            else:
                graph.add(name, operation, *(names[place] for place in parents))
            if graph.nodes[name].value != value:
                raise ValueError(f"value of {name!r} must be {graph.nodes[name].value}, got {value}")
            names.append(name)
        return graph


def graph_columns(
    graph: ComputationGraph, answer_nodes: Sequence[str], thought_nodes: Sequence[str]
) -> dict[str, Any]:
    """Return the columns by which a row keeps its graph, and what its words say of it.

    Args:
        graph (`ComputationGraph`): the graph.
        answer_nodes (`Sequence[str]`): for each word of the answer the node whose value it is.
        thought_nodes (`Sequence[str]`): for each word of the thoughts the node whose value it is, `""` for a word that
            is no value.

    Returns:
        `dict`: `graph`, which [`ComputationGraph.from_json`] reads, `answer_nodes`, `thought_nodes`, and the
        `graph_depth` and `graph_width`.
    """
    return {
        "graph": graph.to_json(),
        "answer_nodes": list(answer_nodes),
        "thought_nodes": list(thought_nodes),
        "graph_depth": graph.depth,
        "graph_width": graph.width,
    }
