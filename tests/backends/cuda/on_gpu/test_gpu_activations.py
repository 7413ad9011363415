"""Activations that are computed in few instructions, on a GPU: the interpreter does not run these instructions."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.backends.cuda.activations import activations, check, check_rounded, dtypes, graph_and_input, rounded_graph_and_input
from tests.backends.cuda.on_gpu.nets import needs_gpu
from torchsmith import backends
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph
from torchsmith.ir.op import Op

pytestmark = needs_gpu


@dtypes
@activations
def test_activation(op: Op, dtype: torch.dtype) -> None:
    graph, x = graph_and_input(op, dtype)
    check(op, x, on_gpu(graph, x))


@activations
def test_rounded_to_int8(op: Op) -> None:
    graph, x = rounded_graph_and_input(op)
    check_rounded(op, x, on_gpu(graph, x))


def on_gpu(graph: Graph, x: Tensor) -> Tensor:
    target = backends.target_of("cuda")
    engine = BACKEND.load(BACKEND.build(graph, target, BuildConfig(tune=False)), target)
    return engine([x.cuda()])[0].cpu()
