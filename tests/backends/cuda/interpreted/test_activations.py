"""Activations that are computed in few instructions, in the interpreter, which computes them in other ones."""

from __future__ import annotations

import torch

from tests.backends.cuda.activations import activations, check, dtypes, graph_and_input
from tests.backends.cuda.simulated import stepped
from torchsmith.ir.op import Op


@dtypes
@activations
def test_activation(op: Op, dtype: torch.dtype) -> None:
    graph, x = graph_and_input(op, dtype)
    _, (found,) = stepped(graph, [x])
    check(op, x, found)
