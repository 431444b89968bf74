# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Linear maps of a single token in compiled graphs on a CPU.

A matrix product with one row does one multiplication for every weight that it reads, so that reading is all that takes
time. Inductor's own loop over the weights reads them faster than the product of the linear algebra library, for which
it would leave the graph.
"""

from typing import Any

import torch
from torch import nn


def single_row_linear(row: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply a linear map to a single row, as a sum that inductor makes a loop of.

    Args:
        row (`torch.Tensor` of shape `[..., K]`): the row; the other dimensions are 1.
        weight (`torch.Tensor` of shape `[N, K]`): the weight.
        bias (`torch.Tensor` of shape `[N]`, *optional*): the bias.

    Returns:
        `torch.Tensor` of shape `[..., N]`.
    """
    product = (row.unsqueeze(-2) * weight).sum(-1)
    return product if bias is None else product + bias


def replace_single_rows(graph: torch.fx.GraphModule) -> None:
    """Replace the linear maps of a single row in a graph that torch traced, if there are any.

    Args:
        graph (`torch.fx.GraphModule`): the graph, which is changed. Its nodes have an example of their value.
    """
    for node in graph.graph.nodes:
        if node.target is nn.functional.linear and has_single_row(*node.args, **node.kwargs):
            names = {"input": "row"}
            node.kwargs = {names.get(name, name): value for name, value in node.kwargs.items()}
            node.target = single_row_linear
    graph.recompile()


def has_single_row(input: Any, weight: Any, bias: Any = None) -> bool:
    """Return whether a linear map in a graph is one of a single row, in single precision."""
    rows, weights = (node.meta.get("example_value") for node in (input, weight))
    if not isinstance(rows, torch.Tensor) or not isinstance(weights, torch.Tensor) or weights.ndim != 2:
        return False
    # the size of a dimension may be a symbol
    is_single = all(isinstance(size, int) and size == 1 for size in rows.shape[:-1])
    return is_single and rows.dtype == weights.dtype == torch.float32


__all__ = ["replace_single_rows", "single_row_linear"]
