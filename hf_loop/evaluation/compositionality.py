"""Does a model compute its answers, or match what it was trained on? The measures of "Faith and Fate" in one report.

Rows of a task with graphs ([`~hf_loop.tasks.addition`], [`~hf_loop.tasks.multiplication`],
[`~hf_loop.tasks.non_adjacent_sum`], [`~hf_loop.tasks.i_gsm`]) and the values that a model gives for their nodes go
in; tables come out: accuracy by the depth and width of the graphs, kinds of errors, how often the computations of
right and of wrong nodes were trained on, and what can be guessed from single inputs. See
https://huggingface.co/papers/2305.18654.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from datasets import Dataset

from ..tasks.computation_graph import ComputationGraph
from .compositionality_errors import (
    DepthErrors,
    DepthFrequency,
    NodeValues,
    errors_by_depth,
    subgraph_frequencies,
)
from .compositionality_information import InformationGain, information_gains
from .markdown import markdown_table


@dataclass(frozen=True)
class ShapeAccuracy:
    """How many answers to rows with graphs of one depth or width are right.

    Args:
        size (`int`): the depth or the width.
        num_rows (`int`): rows with such a graph.
        exact (`float`): the share of answers that are right in every word.
        partial (`float`): the share of right words, the mean over rows.
    """

    size: int
    num_rows: int
    exact: float
    partial: float


@dataclass(frozen=True)
class WordGuess:
    """How often a word of the answer is right, and how far one input determines it.

    Args:
        difficulty (`int`): the difficulty of the rows, which all have answers of one length.
        position (`int`): the place of the word in the answer, from 0.
        accuracy (`float`): the share of rows in which the model gives it.
        gain (`InformationGain`): of the input that tells the most of it.
    """

    difficulty: int
    position: int
    accuracy: float
    gain: InformationGain


@dataclass(frozen=True)
class Compositionality:
    """What [`compositionality`] measures.

    Args:
        by_depth (`list[ShapeAccuracy]`): accuracy by the depth of the graph.
        by_width (`list[ShapeAccuracy]`): accuracy by its width.
        errors (`list[DepthErrors]`): kinds of errors by the depth of nodes.
        frequencies (`list[DepthFrequency]`): occurrences in training rows by the depth of nodes.
        guesses (`list[WordGuess]`): accuracy and information gain by the words of the answer; empty where rows of one
            difficulty have different inputs.
    """

    by_depth: list[ShapeAccuracy]
    by_width: list[ShapeAccuracy]
    errors: list[DepthErrors]
    frequencies: list[DepthFrequency]
    guesses: list[WordGuess]

    def to_markdown(self, level: int = 2) -> str:
        """Return a section of a report, with a table for each measure.

        Args:
            level (`int`, *optional*, defaults to 2): the level of its heading.
        """
        sections = []
        for shape, table in (("depth", self.by_depth), ("width", self.by_width)):
            cells = [[str(e.size), str(e.num_rows), _share(e.exact), _share(e.partial)] for e in table]
            sections.append((f"Accuracy by {shape} of the graph", [shape, "rows", "exact", "partial"], cells))
        cells = [[str(e.depth), str(e.num_nodes), *map(_share, e.shares.values())] for e in self.errors]
        kinds = ["correct", "local error", "propagated error", "restored"]
        sections.append(("Nodes by kind of error", ["depth of node", "nodes", *kinds], cells))
        cells = [
            [str(e.depth), str(e.num_right), _mean(e.right), str(e.num_wrong), _mean(e.wrong)]
            for e in self.frequencies
        ]
        headings = ["depth of node", "right nodes", "mean occurrences", "wrong nodes", "mean occurrences"]
        sections.append(("Occurrences of a node's computation in training rows", headings, cells))
        cells = [
            [str(e.difficulty), str(e.position + 1), _share(e.accuracy), ", ".join(e.gain.inputs)]
            + [_share(e.gain.gain), _share(e.gain.chance)]
            for e in self.guesses
        ]
        headings = ["difficulty", "word of the answer", "accuracy", "most telling input"]
        headings += ["relative information gain", "the same of shuffled rows"]
        sections.append(("What single inputs tell", headings, cells))
        lines = [f"{'#' * level} Compositionality", ""]
        for title, headings, cells in sections:
            if cells:
                lines += [f"{'#' * level}# {title}", "", markdown_table(headings, cells), ""]
        return "\n".join(lines)


def read_graphs(rows: Dataset) -> Iterator[ComputationGraph]:
    """Read the graphs of rows, one by one.

    Args:
        rows (`Dataset`): a split of a task with graphs.

    Raises:
        ValueError: if the rows have no column `graph`.
    """
    if "graph" not in rows.column_names:
        raise ValueError(f"rows must be of a task with graphs, got the columns {rows.column_names}")
    for text in rows["graph"]:
        yield ComputationGraph.from_json(text)


def accuracy_by_shape(
    graphs: Sequence[ComputationGraph],
    answer_nodes: Sequence[Sequence[str]],
    predicted: Sequence[NodeValues],
    shape: Literal["depth", "width"] = "depth",
) -> list[ShapeAccuracy]:
    """Compute the shares of right answers and of right words by the depth or the width of the graphs.

    Args:
        graphs (`Sequence[ComputationGraph]`): the graphs of the rows.
        answer_nodes (`Sequence[Sequence[str]]`): the nodes of the words of each row's answer.
        predicted (`Sequence[Mapping[str, int]]`): the values that the model gives, for each row; a node without one
            counts as wrong.
        shape (`str`): `"depth"` or `"width"`.

    Returns:
        `list[ShapeAccuracy]`: the smallest first.
    """
    groups: dict[int, list[float]] = {}
    for graph, nodes, values in zip(graphs, answer_nodes, predicted, strict=True):
        right = [values.get(name) == graph.nodes[name].value for name in nodes]
        groups.setdefault(graph.depth if shape == "depth" else graph.width, []).append(sum(right) / len(right))
    return [
        ShapeAccuracy(size, len(shares), sum(share == 1 for share in shares) / len(shares), sum(shares) / len(shares))
        for size, shares in sorted(groups.items())
    ]


def compositionality(rows: Dataset, predicted: Sequence[NodeValues], training_rows: Dataset) -> Compositionality:
    """Measure what a model's answers tell of its computation.

    Args:
        rows (`Dataset`): test rows of a task with graphs.
        predicted (`Sequence[Mapping[str, int]]`): for each row the values that the model gives for nodes, those of the
            answer at least; [`node_values`] reads them from text. The more nodes have a value, from a chain of
            thought or a probe, the nearer to its cause is an error found.
        training_rows (`Dataset`): the rows that the model was trained on.

    Returns:
        `Compositionality`: tables, which `to_markdown` writes.

    Raises:
        ValueError: if there are not as many predictions as rows, or rows have no graphs.
    """
    if len(predicted) != len(rows):
        raise ValueError(f"predicted must have the values of {len(rows)} rows, got {len(predicted)}")
    graphs, answer_nodes = list(read_graphs(rows)), list(rows["answer_nodes"])
    return Compositionality(
        by_depth=accuracy_by_shape(graphs, answer_nodes, predicted, "depth"),
        by_width=accuracy_by_shape(graphs, answer_nodes, predicted, "width"),
        errors=errors_by_depth(graphs, predicted),
        frequencies=subgraph_frequencies(graphs, predicted, read_graphs(training_rows)),
        guesses=_word_guesses(rows["difficulty"], graphs, answer_nodes, predicted),
    )


def _word_guesses(
    difficulties: Iterable[int],
    graphs: Sequence[ComputationGraph],
    answer_nodes: Sequence[Sequence[str]],
    predicted: Sequence[NodeValues],
) -> list[WordGuess]:
    groups: dict[int, list[int]] = {}
    for i, difficulty in enumerate(difficulties):
        groups.setdefault(difficulty, []).append(i)
    guesses: list[WordGuess] = []
    for difficulty, members in sorted(groups.items()):
        nodes = [answer_nodes[i] for i in members]
        # rows of tasks such as i-GSM have inputs of their own
        if len({tuple(n for n, node in graphs[i].nodes.items() if not node.parents) for i in members}) > 1:
            continue
        best: dict[int, InformationGain] = {}
        for gain in information_gains([graphs[i] for i in members], nodes):
            best.setdefault(gain.position, gain)
        for position, gain in best.items():
            names = [row[position] for row in nodes]
            right = [predicted[i].get(name) == graphs[i].nodes[name].value for i, name in zip(members, names)]
            guesses.append(WordGuess(difficulty, position, sum(right) / len(right), gain))
    return guesses


def _share(value: float) -> str:
    return f"{value:.3f}"


def _mean(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
