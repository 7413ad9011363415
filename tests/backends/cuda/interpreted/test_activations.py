"""Activations that are computed in few instructions, in the interpreter, which computes them in other ones."""

from __future__ import annotations

import torch

from tests.backends.cuda.activations import activations, check, check_rounded, dtypes, graph_and_input, rounded_graph_and_input
from tests.backends.cuda.simulated import stepped
from torchsmith.backends.cuda.steps import Launch
from torchsmith.ir.op import Op


@dtypes
@activations
def test_activation(op: Op, dtype: torch.dtype) -> None:
    graph, x = graph_and_input(op, dtype)
    _, (found,) = stepped(graph, [x])
    check(op, x, found)


@activations
def test_rounded_to_int8(op: Op) -> None:
    graph, x = rounded_graph_and_input(op)
    (step,), (found,) = stepped(graph, [x])
    assert isinstance(step, Launch) and "_coarse(" in str(step.kernel.constants)
    check_rounded(op, x, found)
