"""The loop at which each value of a computation becomes readable, by linear probes on the state after every loop.

A probe may compute what it is asked for instead of reading it. Its control task asks it for labels that are drawn at
random for every input type, from the distribution of the values (https://huggingface.co/papers/1909.03368): what it
finds of these it has learned by heart from the inputs. Accuracy minus that of the control is the probe's selectivity.
For a value of a computation graph the input type is the values that it follows from, see [`node_table`]: the control
is a random operation in place of the right one, and a probe that does the one but not the other has read a result.
"""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy, one_hot

from ..field_values import build
from ..tasks.computation_graph import ComputationGraph


# of the squared weights, of features with unit variance, beside the mean loss of a row
PENALTY = 1e-3
MAX_ITERATIONS = 100
# share of the training rows that choose a position by the accuracy on the others
FITTED_SHARE = 0.8


@dataclass
class NodeProbes:
    """How well the value of every node is read from the state after every loop, on held-out rows.

    Args:
        nodes (`list[str]`): the nodes, by depth.
        depths (`list[int]`): operations on the longest path to each from an input.
        loops (`list[int]`): the loops, from 1; 0 is the state before the first.
        chance (`list[float]`): for each node, the accuracy of its most frequent value in training.
        accuracy (`list[list[float]]`): for each node, that of the probe after every loop.
        control (`list[list[float]]`): for each node, that of the same probe on the control task.
        positions (`list[list[int]]`, *optional*): for each node, the position that was read after every loop, where
            there was a choice.
        num_train (`int`): rows that probes were fitted to.
        num_test (`int`): rows that were measured.
    """

    nodes: list[str]
    depths: list[int]
    loops: list[int]
    chance: list[float]
    accuracy: list[list[float]]
    control: list[list[float]]
    num_train: int
    num_test: int
    positions: list[list[int]] | None = field(default=None)

    def accuracy_of(self, node: str) -> list[float]:
        """Return the accuracy of a node's probe after every loop."""
        return self.accuracy[self._index(node)]

    def selectivity(self, node: str) -> list[float]:
        """Return accuracy minus that of the control task, after every loop."""
        index = self._index(node)
        return [found - learned for found, learned in zip(self.accuracy[index], self.control[index], strict=True)]

    def readable_loop(self, node: str, share: float = 0.5, stays: bool = True) -> int | None:
        """Return the loop from which on a node is readable, `None` if it never is.

        Args:
            node (`str`): the node.
            share (`float`, *optional*, defaults to 0.5): the share of the way from chance to 1 that the accuracy must
                have come.
            stays (`bool`, *optional*, defaults to `True`): whether it must stay there in all later loops. A model that
                overwrites its values step by step keeps none of them.

        Raises:
            ValueError: if the share is not above 0 and at most 1, or the node has no other value than one.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        index = self._index(node)
        chance = self.chance[index]
        if chance == 1:
            raise ValueError(f"node {node!r} has one value only, which needs no reading")
        is_read = [found >= chance + share * (1 - chance) for found in self.accuracy[index]]
        for place, loop in enumerate(self.loops):
            if all(is_read[place:]) if stays else is_read[place]:
                return loop
        return None

    def _index(self, node: str) -> int:
        if node not in self.nodes:
            raise ValueError(f"node {node!r} was not probed; there are {', '.join(self.nodes)}")
        return self.nodes.index(node)

    def to_dict(self) -> dict[str, Any]:
        """Return the probes as lists and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "NodeProbes":
        """Make probes from what [`~NodeProbes.to_dict`] returned.

        Raises:
            ValueError: if a field is missing, unknown or of another type.
        """
        return build(cls, data, "probes of nodes")


class NodeTable(NamedTuple):
    """The nodes that all graphs of a data set have.

    Args:
        values (`dict[str, list[int]]`): for each node, its value in every row.
        types (`dict[str, list]`): for each node, in every row the values of its parents, or an input's own: what a
            control task may depend on.
        depths (`dict[str, int]`): for each node, its depth, the largest of all rows.
    """

    values: dict[str, list[int]]
    types: dict[str, list[Hashable]]
    depths: dict[str, int]


def node_table(graphs: Sequence[ComputationGraph]) -> NodeTable:
    """Collect the values of the nodes that all graphs have; of constants there is nothing to read, they are left out.

    Args:
        graphs (`Sequence[ComputationGraph]`): the graphs of the rows, such as `read_graphs` of the evaluation.

    Raises:
        ValueError: if no node is in all graphs with more than one value.
    """
    names = [name for name in graphs[0].nodes if all(name in graph.nodes for graph in graphs)] if graphs else []
    values, types, depths = {}, {}, {}
    for name in names:
        nodes = [graph.nodes[name] for graph in graphs]
        if len({node.value for node in nodes}) == 1:
            continue
        values[name] = [node.value for node in nodes]
        types[name] = [
            (node.operation, *(graph.nodes[parent].value for parent in node.parents)) if node.parents else node.value
            for node, graph in zip(nodes, graphs, strict=True)
        ]
        depths[name] = max(node.depth for node in nodes)
    if not values:
        raise ValueError("graphs must share nodes of more than one value; there is none to probe")
    return NodeTable(values, types, depths)


def probe_nodes(
    states: torch.Tensor | Mapping[str, torch.Tensor],
    values: Mapping[str, Sequence[int]],
    types: Sequence[Hashable] | Mapping[str, Sequence[Hashable]],
    *,
    depths: Mapping[str, int] | None = None,
    first_loop: int = 1,
    train_share: float = 0.5,
    seed: int = 0,
) -> NodeProbes:
    """Fit a probe for every node and loop to some of the rows, and measure it and its control on the others.

    A probe is a multinomial logistic regression on standardised features, as in the paper above.

    Args:
        states (`torch.Tensor` of shape `[N, R, D]` or `[N, R, P, D]`, or a mapping): the states of N rows after R
            loops, at one position of every row, or at P of them, of which the best one is chosen for every node and
            loop on the training rows. A mapping has the states of each node, which may stand at other positions.
        values (`Mapping[str, Sequence[int]]`): for each node, its value in every row.
        types (`Sequence` or `Mapping[str, Sequence]`): in every row the input type that a control label is drawn for;
            a mapping has those of each node. Types that are all different cannot be learned by heart and tell nothing.
        depths (`Mapping[str, int]`, *optional*): for each node, its depth in the graph, by default all 0.
        first_loop (`int`, *optional*, defaults to 1): the loop of the first states; 0 for those before the loops.
        train_share (`float`, *optional*, defaults to 0.5): the share of the rows that probes are fitted to.
        seed (`int`, *optional*, defaults to 0): seed of the split and of the control labels.

    Returns:
        `NodeProbes`: the nodes by depth.

    Raises:
        ValueError: if there is no node, the sizes do not fit, or a state is no finite number.
    """
    if not values:
        raise ValueError("values is empty; there is no node to probe")
    depths = dict.fromkeys(values, 0) if depths is None else depths
    nodes = sorted(values, key=lambda node: depths[node])
    by_node = states if isinstance(states, Mapping) else dict.fromkeys(values, states)
    num_rows, num_loops = by_node[nodes[0]].shape[:2]
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    cut = round(train_share * num_rows)
    train, test = order[:cut], order[cut:]
    if len(train) < 2 or len(test) < 1:
        raise ValueError(f"probes need 2 rows to fit to and 1 to measure, got {len(train)} and {len(test)}")
    probes = NodeProbes(
        nodes=nodes,
        depths=[depths[node] for node in nodes],
        loops=list(range(first_loop, first_loop + num_loops)),
        chance=[],
        accuracy=[],
        control=[],
        num_train=len(train),
        num_test=len(test),
    )
    positions = []
    for node in nodes:
        node_states = _with_positions(node, by_node[node], num_rows, num_loops, first_loop)
        node_types = types[node] if isinstance(types, Mapping) else types
        if not len(values[node]) == len(node_types) == num_rows:
            found = f"{len(values[node])} values, {len(node_types)} types"
            raise ValueError(f"node {node!r} must have a value and a type in each of {num_rows} rows, got {found}")
        labels = _as_classes(values[node]).to(node_states.device)
        control = _control_labels(labels, node_types, f"{seed} {node}")
        most_frequent = labels[train].mode().values
        probes.chance.append(float((labels[test] == most_frequent).float().mean()))
        rows = [_probe_loop(node_states[:, loop].float(), labels, control, train, test) for loop in range(num_loops)]
        accuracy, of_control, chosen = (list(column) for column in zip(*rows, strict=True))
        probes.accuracy.append(accuracy)
        probes.control.append(of_control)
        positions.append(chosen)
    if any(by_node[node].ndim == 4 for node in nodes):
        probes.positions = positions
    return probes


def _with_positions(node: str, states: torch.Tensor, num_rows: int, num_loops: int, first_loop: int) -> torch.Tensor:
    """Return states as `[N, R, P, D]`."""
    if states.ndim not in (3, 4) or states.shape[:2] != (num_rows, num_loops):
        raise ValueError(
            f"states of node {node!r} must be of shape [{num_rows}, {num_loops}, D] or "
            f"[{num_rows}, {num_loops}, P, D], got {list(states.shape)}"
        )
    is_finite = states.isfinite().transpose(0, 1).flatten(1).all(dim=1)
    if not is_finite.all():
        loop = first_loop + int(is_finite.int().argmin())
        raise ValueError(
            f"states of node {node!r} must be finite numbers, and are not from loop {loop} on: nothing can be read of "
            "a state that has overflowed; probe fewer loops"
        )
    return states[:, :, None] if states.ndim == 3 else states


def _as_classes(values: Sequence[int]) -> torch.Tensor:
    """Return the index of each value among all that occur, `[N]`."""
    return torch.unique(torch.as_tensor(list(values)), return_inverse=True)[1]


def _control_labels(labels: torch.Tensor, types: Sequence[Hashable], seed: str) -> torch.Tensor:
    """Draw a label for every type, from the distribution of `labels`, and return that of every row, `[N]`."""
    drawing, pool = random.Random(seed), labels.tolist()
    drawn: dict[Hashable, int] = {}
    for kind in types:
        if kind not in drawn:
            drawn[kind] = drawing.choice(pool)
    return torch.tensor([drawn[kind] for kind in types], device=labels.device)


def _probe_loop(
    states: torch.Tensor, labels: torch.Tensor, control: torch.Tensor, train: torch.Tensor, test: torch.Tensor
) -> tuple[float, float, int]:
    """Return the accuracy of a probe of states `[N, P, D]`, that of its control, and the position it reads."""
    position = 0 if states.shape[1] == 1 else _best_position(states[train], labels[train])
    # the control reads where it can be read best, too
    of_control = 0 if states.shape[1] == 1 else _best_position(states[train], control[train])
    return (
        _held_out_accuracy(states[:, position], labels, train, test),
        _held_out_accuracy(states[:, of_control], control, train, test),
        position,
    )


def _best_position(states: torch.Tensor, labels: torch.Tensor) -> int:
    """Return the position of `[N, P, D]` at which a probe reads most of the last rows; the first of several."""
    cut = max(1, math.floor(FITTED_SHARE * len(labels)))
    rows = torch.arange(len(labels))
    found = [
        _held_out_accuracy(states[:, position], labels, rows[:cut], rows[cut:], by_ridge=True)
        for position in range(states.shape[1])
    ]
    return found.index(max(found))


def _held_out_accuracy(
    states: torch.Tensor, labels: torch.Tensor, train: torch.Tensor, test: torch.Tensor, by_ridge: bool = False
) -> float:
    """Fit a probe to the training rows of states `[N, D]` and return its accuracy on the test rows."""
    mean, deviation = states[train].mean(dim=0), states[train].std(dim=0)
    # a feature that does not vary in training says nothing
    scale = torch.where(deviation > 1e-6 * deviation.max().clamp(min=1e-30), 1 / deviation, 0)
    features = (states - mean) * scale
    num_classes = int(labels.max()) + 1
    fit = ridge_probe if by_ridge else logistic_probe
    weight, bias = fit(features[train], labels[train], num_classes)
    return float(((features[test] @ weight + bias).argmax(dim=-1) == labels[test]).float().mean())


def ridge_probe(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit `[D, K]` weights and `[K]` biases to one-hot labels by least squares, in closed form.

    Args:
        features (`torch.Tensor` of shape `[N, D]`): standardised features.
        labels (`torch.LongTensor` of shape `[N]`): the labels, below K.
        num_classes (`int`): K.
    """
    inputs = features.cpu().double()
    targets = one_hot(labels, num_classes).cpu().double()
    bias = targets.mean(dim=0)
    gram = inputs.T @ inputs / len(inputs) + PENALTY * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weight = torch.linalg.solve(gram, inputs.T @ (targets - bias) / len(inputs))
    return weight.to(features), bias.to(features)


def logistic_probe(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit `[D, K]` weights and `[K]` biases of a multinomial logistic regression, by L-BFGS; see [`ridge_probe`]."""
    weight = features.new_zeros(features.shape[1], num_classes, requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(features @ weight + bias, labels) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


__all__ = ["NodeProbes", "NodeTable", "logistic_probe", "node_table", "probe_nodes", "ridge_probe"]
