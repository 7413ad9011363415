"""The reference backend: engines that are the graph itself."""

from __future__ import annotations

import pytest
import torch

from torchsmith import backends
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops.linear import Linear
from torchsmith.ops.unary import Unary
from torchsmith.target import this_cpu


@pytest.fixture
def graph() -> Graph:
    with Builder({"n": (1, 8)}) as b:
        x = b.input(TensorType((symbol("n"), 4), torch.float32))
        return b.finish([Unary("relu")(Linear()(x, b.constant(torch.randn(3, 4))))])


def test_an_engine_runs_at_every_size(graph: Graph) -> None:
    backend = backends.get("reference")
    run = backend.load(backend.build(graph, this_cpu(), BuildConfig()), this_cpu())
    (weight,) = graph.constants.values()
    for n in (1, 5):
        x = torch.randn(n, 4)
        torch.testing.assert_close(run([x])[0], torch.relu(x @ weight.T))


def test_it_takes_every_node_and_every_machine(graph: Graph) -> None:
    backend = backends.get("reference")
    assert backend.available() is None
    assert all(backend.refuses(node, this_cpu()) is None for node in graph.nodes)


@pytest.mark.parametrize("damage", [lambda e: b"", lambda e: b"nonsense" * 9, lambda e: e[: len(e) // 2]])
def test_other_bytes_are_refused(graph: Graph, damage) -> None:  # type: ignore[no-untyped-def]
    backend = backends.get("reference")
    engine = damage(backend.build(graph, this_cpu(), BuildConfig()))
    with pytest.raises(EngineMismatch, match="no reference engine"):
        backend.load(engine, this_cpu())
