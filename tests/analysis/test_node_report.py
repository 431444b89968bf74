"""Answers are read as values of nodes, and probes are fitted for the nodes that all rows share."""

from types import SimpleNamespace

import pytest
import torch

from hf_loop.analysis.node_report import predicted_values, probe_graph_nodes
from hf_loop.evaluation.compositionality import compositionality, read_graphs
from hf_loop.tasks import addition

from ..models.looped_variants import tiny_looped


@pytest.fixture(scope="module")
def sums():
    return addition(64, 24, 3, min_difficulty=3)


class Adder(torch.nn.Module):
    """Predicts the next token of the rows it knows; where a row's first digit is odd, its last token is another."""

    device = torch.device("cpu")

    def __init__(self, rows, tokenizer):
        super().__init__()
        self.rows, self.zero, self.tokenizer = rows, tokenizer.convert_tokens_to_ids("0"), tokenizer
        self.size = len(tokenizer)

    def forward(self, input_ids, attention_mask, use_cache):
        targets = input_ids.roll(-1, 1)
        for row, length in enumerate(attention_mask.sum(1).tolist()):
            if self.is_odd(input_ids[row]):
                last = int(input_ids[row, length - 1])
                targets[row, length - 2] = self.zero if last != self.zero else self.zero + 1
        return SimpleNamespace(logits=torch.nn.functional.one_hot(targets, self.size).float())

    def is_odd(self, tokens):
        return int(self.tokenizer.convert_ids_to_tokens(int(tokens[1]))) % 2 == 1


def test_answers_are_values_of_nodes(sums):
    splits, tokenizer = sums
    rows = splits["test"]
    model = Adder(rows, tokenizer)
    values = predicted_values(model, tokenizer, rows)
    odd = [model.is_odd(torch.tensor(row)) for row in rows["input_ids"]]
    assert 0 < sum(odd) < len(odd)
    for graph, nodes, found, is_odd in zip(read_graphs(rows), rows["answer_nodes"], values, odd):
        right = [found[node] == graph.nodes[node].value for node in nodes]
        assert all(right[:-1]) and right[-1] != is_odd
    (level,) = compositionality(rows, values, splits["train"]).by_depth
    assert level.exact == pytest.approx(1 - sum(odd) / len(odd))


def test_probes_of_a_random_model_are_of_every_shared_node(sums):
    splits, _ = sums
    probes = probe_graph_nodes(tiny_looped(num_loops=3).eval(), splits["test"], num_loops=4)
    shared = set.intersection(*(set(graph.nodes) for graph in read_graphs(splits["test"])))
    assert set(probes.nodes) <= shared and probes.loops == [1, 2, 3, 4]
    # a digit of the input stands in the prompt: the state of its own token tells it
    digits = [node for node, depth in zip(probes.nodes, probes.depths) if depth == 0]
    assert digits
