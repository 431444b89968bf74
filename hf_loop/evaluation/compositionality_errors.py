"""Where in a computation a model goes wrong: the errors of nodes, and how often their computations were trained on.

Both compare the values that a model gives for the nodes of a [`~hf_loop.tasks.ComputationGraph`], wherever they were
read: in its answer, in its chain of thought, or with a probe on its hidden states. They are those of "Faith and Fate"
(https://huggingface.co/papers/2305.18654).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..tasks.computation_graph import ComputationGraph, apply_operation


NodeError = Literal["correct", "local", "propagated", "restored"]

# the values that a model gives, by the names of the nodes
NodeValues = Mapping[str, int]


@dataclass(frozen=True)
class DepthErrors:
    """What became of the nodes of one depth.

    Args:
        depth (`int`): operations on the longest path from an input.
        num_nodes (`int`): nodes with a value.
        shares (`dict[str, float]`): the shares of them that are `"correct"`, `"local"`, `"propagated"` and
            `"restored"`.
    """

    depth: int
    num_nodes: int
    shares: dict[NodeError, float]


@dataclass(frozen=True)
class DepthFrequency:
    """How often the computations of the nodes of one depth occur in training rows.

    Args:
        depth (`int`): operations on the longest path from an input.
        num_right (`int`): nodes whose value the model gives.
        right (`float`, *optional*): mean number of occurrences of their computations; `None` if there are no such
            nodes.
        num_wrong (`int`): nodes for which it gives another value.
        wrong (`float`, *optional*): the same mean for these.
    """

    depth: int
    num_right: int
    right: float | None
    num_wrong: int
    wrong: float | None


def node_values(text: str, nodes: Sequence[str]) -> dict[str, int]:
    """Read the values of nodes from the words of an answer or of a chain of thought.

    Args:
        text (`str`): the words that the model gives, such as its answer.
        nodes (`Sequence[str]`): for each word the node whose value it is, such as the column `answer_nodes` of a row,
            `""` for a word that is no value.

    Returns:
        `dict[str, int]`: the values; without nodes whose word is missing or no integer.
    """
    values = {}
    for word, name in zip(text.split(), nodes):
        if name and word.removeprefix("-").isdecimal():
            values[name] = int(word)
    return values


def node_errors(graph: ComputationGraph, predicted: NodeValues) -> dict[str, NodeError]:
    """Classify the nodes whose values a model gives, by these values and those of their parents.

    - `"correct"`: the value is right, and so are all parents';
    - `"local"`: the value is wrong, and not what the operation gives of the parents' values, right or wrong;
    - `"propagated"`: the value is wrong, and what the operation gives of the parents' wrong values;
    - `"restored"`: the value is right, though a parent's is wrong.

    A parent whose value is not given, such as a carry that no chain of thought writes, is taken as computed without
    error from those that are. Where it was not, the next node with a value has the local error.

    Args:
        graph (`ComputationGraph`): the graph with the right values.
        predicted (`Mapping[str, int]`): values by the names of nodes. Inputs are taken as right unless they are among
            them.

    Returns:
        `dict[str, str]`: the class of each node with a value but the inputs.

    Raises:
        ValueError: if a value is given for a node that is not in the graph.
    """
    _check_nodes(graph, predicted)
    # of each node the value that the nodes after it are computed from
    values: dict[str, int] = {}
    errors: dict[str, NodeError] = {}
    for name, node in graph.nodes.items():
        if not node.parents:
            values[name] = predicted.get(name, node.value)
            continue
        implied = apply_operation(node.operation, [values[parent] for parent in node.parents])
        values[name] = predicted.get(name, implied)
        if name not in predicted:
            continue
        parents_right = all(values[parent] == graph.nodes[parent].value for parent in node.parents)
        if values[name] == node.value:
            errors[name] = "correct" if parents_right else "restored"
        else:
            errors[name] = "propagated" if values[name] == implied else "local"
    return errors


def errors_by_depth(graphs: Iterable[ComputationGraph], predicted: Iterable[NodeValues]) -> list[DepthErrors]:
    """Count the errors of the nodes of each depth, see [`node_errors`].

    Args:
        graphs (`Iterable[ComputationGraph]`): the graphs of the rows.
        predicted (`Iterable[Mapping[str, int]]`): the values that the model gives, for each row.

    Returns:
        `list[DepthErrors]`: the lowest depth first.
    """
    counts: dict[int, Counter[NodeError]] = {}
    for graph, values in zip(graphs, predicted, strict=True):
        for name, error in node_errors(graph, values).items():
            counts.setdefault(graph.nodes[name].depth, Counter())[error] += 1
    kinds: tuple[NodeError, ...] = ("correct", "local", "propagated", "restored")
    return [
        DepthErrors(depth, count.total(), {kind: count[kind] / count.total() for kind in kinds})
        for depth, count in sorted(counts.items())
    ]


def subgraph_frequencies(
    graphs: Sequence[ComputationGraph], predicted: Iterable[NodeValues], training_graphs: Iterable[ComputationGraph]
) -> list[DepthFrequency]:
    """Count how often the whole computation of a node occurs in training rows, for right and for wrong nodes.

    Where a model matches patterns of its training data instead of computing, it is right at nodes whose computations
    it has often seen. Two computations are equal if the same operations on the same values lead to the node.

    Args:
        graphs (`Sequence[ComputationGraph]`): the graphs of the rows.
        predicted (`Iterable[Mapping[str, int]]`): the values that the model gives, for each row; nodes without one are
            not counted, nor are inputs.
        training_graphs (`Iterable[ComputationGraph]`): the graphs of the training rows, read once.

    Returns:
        `list[DepthFrequency]`: the lowest depth first.

    Raises:
        ValueError: if a value is given for a node that is not in the graph.
    """
    # for each depth the keys of its right and of its wrong nodes
    keys: dict[int, tuple[list[str], list[str]]] = {}
    for graph, values in zip(graphs, predicted, strict=True):
        _check_nodes(graph, values)
        node_keys = graph.subgraph_keys()
        for name, value in values.items():
            node = graph.nodes[name]
            if node.parents:
                keys.setdefault(node.depth, ([], []))[value != node.value].append(node_keys[name])
    wanted = {key for groups in keys.values() for group in groups for key in group}
    occurrences: Counter[str] = Counter()
    for graph in training_graphs:
        occurrences.update(key for key in graph.subgraph_keys().values() if key in wanted)

    def mean(group: list[str]) -> float | None:
        return sum(occurrences[key] for key in group) / len(group) if group else None

    return [
        DepthFrequency(depth, len(right), mean(right), len(wrong), mean(wrong))
        for depth, (right, wrong) in sorted(keys.items())
    ]


def _check_nodes(graph: ComputationGraph, predicted: NodeValues) -> None:
    unknown = [name for name in predicted if name not in graph.nodes]
    if unknown:
        raise ValueError(f"predicted must have values of nodes of the graph only, got {unknown[0]!r}")
