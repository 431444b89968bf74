"""Linear maps of one row become sums in compiled graphs, and no others do."""

import pytest
import torch
from torch import nn

from hf_loop.models.single_row import replace_single_rows, single_row_linear


class Replacing:
    """A backend that replaces linear maps and runs the graph as it is."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs, **kwargs):
        replace_single_rows(graph)
        self.count += sum(node.target is single_row_linear for node in graph.graph.nodes)
        return graph.forward


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 6), (6,), (1, 2, 6), (2, 1, 6)])
def test_a_row_alone_is_replaced(shape, bias):
    torch.manual_seed(0)
    layer, rows, backend = nn.Linear(6, 5, bias=bias), torch.randn(shape), Replacing()
    with torch.no_grad():
        result = torch.compile(layer, backend=backend, dynamic=False)(rows)
        torch.testing.assert_close(result, layer(rows))
    assert backend.count == (2 not in shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_left_alone(dtype):
    layer, backend = nn.Linear(6, 5, dtype=dtype), Replacing()
    row = torch.randn(1, 6, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, backend=backend)(row), layer(row))
    assert backend.count == 0


def test_arguments_by_name():
    def apply(row, weight, bias):
        return nn.functional.linear(bias=bias, weight=weight, input=row)

    row, weight, bias = torch.randn(1, 6), torch.randn(5, 6), torch.randn(5)
    backend = Replacing()
    torch.testing.assert_close(torch.compile(apply, backend=backend)(row, weight, bias), apply(row, weight, bias))
    assert backend.count == 1


def test_an_unknown_number_of_rows_is_left_alone():
    layer, backend = nn.Linear(6, 5), Replacing()
    compiled = torch.compile(layer, backend=backend, dynamic=True)
    with torch.no_grad():
        for length in (3, 4):
            compiled(torch.randn(1, length, 6))
    assert backend.count == 0
