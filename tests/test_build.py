"""Segments into engines."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from torchsmith import backends
from torchsmith.build import build
from torchsmith.config import Config
from torchsmith.errors import BuildError, Unsupported
from torchsmith.partition.segments import Partitioned, partition
from torchsmith.target import this_cpu


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(torch.relu(self.a(x))))


@pytest.fixture
def partitioned() -> Partitioned:
    shapes = ({0: Dim("n", min=1, max=8)},)
    with torch.no_grad():
        program = export(Net().eval(), (torch.randn(2, 4),), dynamic_shapes=shapes)
    refuses = lambda node: "not here" if getattr(node.op, "function", "") == "tanh" else None  # noqa: E731
    return partition(program, refuses, Config.from_options(min_block_size=1).partition)


def test_every_segment_becomes_a_call_to_its_engine(partitioned: Partitioned) -> None:
    built = build(partitioned, backends.get("reference"), this_cpu(), Config())
    targets = [str(n.target) for n in built.program.graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "getitem" not in t] == [
        "torchsmith.execute_engine.default",
        "aten.tanh.default",
        "torchsmith.execute_engine.default",
    ]
    assert len(built.engines) == 2 and all(e.precision == torch.float32 for e in built.engines)


def test_the_spec_names_the_engine_by_its_checksum(partitioned: Partitioned) -> None:
    built = build(partitioned, backends.get("reference"), this_cpu(), Config())
    calls = [n for n in built.program.graph.nodes if "execute_engine" in str(n.target)]
    for call, engine in zip(calls, built.engines, strict=True):
        spec = json.loads(call.args[2])
        assert spec["id"] == hashlib.sha256(engine.engine).hexdigest()
        assert spec["backend"] == "reference"
        (symbol,) = spec["symbols"]
        assert spec["inputs"][0]["shape"][0] == symbol


def test_a_backend_that_changes_its_mind_is_a_build_error(partitioned: Partitioned) -> None:
    class Fickle(type(backends.get("reference"))):  # type: ignore[misc]
        def build(self, *_: object) -> bytes:
            raise Unsupported("too many nodes")

    with pytest.raises(BuildError, match="accepted every node of segment 0 and refused the whole: too many nodes"):
        build(partitioned, Fickle(), this_cpu(), Config())
