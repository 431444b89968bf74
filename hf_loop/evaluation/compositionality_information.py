"""How much a few input values tell of an answer's: what can be guessed without the computation.

The relative information gain of "Faith and Fate" (https://huggingface.co/papers/2305.18654) of a part Y of the answer
from some inputs X is `(H(Y) - H(Y | X)) / H(Y)`, with the entropies of a data set. It is 1 where X determines Y, as
the last digits of two factors determine the last digit of their product, and 0 where X tells nothing. A model that is
right just where the gain is high may have learned a shortcut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..tasks.computation_graph import ComputationGraph


@dataclass(frozen=True)
class InformationGain:
    """What some inputs tell of a word of the answer.

    Args:
        position (`int`): the place of the word in the answer, from 0.
        inputs (`tuple[str, ...]`): the names of the input nodes.
        gain (`float`): the relative information gain, from 0 to 1.
        chance (`float`): the gain of the same inputs after the rows were shuffled: what the number of rows alone makes
            of inputs that tell nothing.
    """

    position: int
    inputs: tuple[str, ...]
    gain: float
    chance: float


def relative_information_gain(outputs: np.ndarray, inputs: np.ndarray) -> float:
    """Compute the relative information gain of one variable from others.

    The entropies are those of the observed frequencies. They need many more rows than the inputs have combinations of
    values: where each occurs once, it seems to determine the output.

    Args:
        outputs (`np.ndarray`): `[rows]`, integers.
        inputs (`np.ndarray`): `[rows, variables]`, integers.

    Returns:
        `float`: from 0 to 1.

    Raises:
        ValueError: if the shapes do not fit, or the outputs are all equal, so that there is nothing to tell.
    """
    if outputs.ndim != 1 or inputs.ndim != 2 or len(outputs) != len(inputs):
        raise ValueError(
            f"outputs must have the shape [rows] and inputs [rows, variables], got {outputs.shape} and {inputs.shape}"
        )
    total = _entropy(outputs[:, None])
    if total == 0:
        raise ValueError(f"outputs must have at least two values, got {np.unique(outputs).tolist()}")
    # H(Y | X) = H(X, Y) - H(X); rounding may take it below 0
    remaining = _entropy(np.column_stack([inputs, outputs])) - _entropy(inputs)
    return min(1.0, max(0.0, (total - remaining) / total))


def information_gains(
    graphs: Sequence[ComputationGraph], answer_nodes: Sequence[Sequence[str]], max_inputs: int = 1
) -> list[InformationGain]:
    """Compute what each combination of a few inputs tells of each word of the answer.

    Args:
        graphs (`Sequence[ComputationGraph]`): the graphs of rows of one form, such as sums of as many operands.
        answer_nodes (`Sequence[Sequence[str]]`): the nodes of each row's answer.
        max_inputs (`int`, *optional*, defaults to 1): the most inputs of a combination; there are many combinations
            of more than two.

    Returns:
        `list[InformationGain]`: by the words of the answer; for each, the combinations of one input come before those
        of two, and a higher gain before a lower one. Words that are the same in all rows are left out.

    Raises:
        ValueError: if the rows are not all of one form, or there are none.
    """
    if not graphs or max_inputs < 1:
        raise ValueError(f"max_inputs and the number of graphs must be at least 1, got {max_inputs} and {len(graphs)}")
    names = _input_names(graphs[0])
    for i, (graph, nodes) in enumerate(zip(graphs, answer_nodes, strict=True)):
        if _input_names(graph) != names or len(nodes) != len(answer_nodes[0]):
            raise ValueError(f"graphs must have the same inputs and answers of one length, got others in row {i}")
    inputs = np.array([[graph.nodes[name].value for name in names] for graph in graphs])
    outputs = np.array([[graph.nodes[name].value for name in row] for graph, row in zip(graphs, answer_nodes)])
    shuffled = np.random.default_rng(0).permutation(inputs)
    gains: list[InformationGain] = []
    for position, column in enumerate(outputs.T):
        if len(np.unique(column)) == 1:
            continue
        for size in range(1, max_inputs + 1):
            found = [
                InformationGain(
                    position,
                    tuple(names[place] for place in chosen),
                    relative_information_gain(column, inputs[:, chosen]),
                    relative_information_gain(column, shuffled[:, chosen]),
                )
                for chosen in map(list, combinations(range(len(names)), size))
            ]
            gains += sorted(found, key=lambda entry: -entry.gain)
    return gains


def _input_names(graph: ComputationGraph) -> list[str]:
    return sorted(name for name, node in graph.nodes.items() if not node.parents)


def _entropy(columns: np.ndarray) -> float:
    """The entropy of the observed rows, in nats."""
    counts = np.unique(columns, axis=0, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
