"""Norms, softmax and reductions compile for every architecture, with wide loads; what fuses with them; what is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import graph_of
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.steps import Launch
from torchsmith.errors import Unsupported

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")


class Embedded(nn.Module):
    """BERT's first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.norm = nn.Embedding(100, 768), nn.Embedding(128, 768), nn.LayerNorm(768)
        self.out = nn.Linear(768, 8)

    def forward(self, ids: Tensor) -> Any:
        return self.out(self.norm(self.words(ids) + self.positions(torch.arange(128, device=ids.device))))


class Functional(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x * 0.5)


def emission(module: nn.Module, x: Tensor, kind: str) -> Emission:
    graph = fuse(graph_of(module, [x]))
    placed, packed = place(graph), Packed(graph.constants)
    return [e for n in graph.nodes if tactics.kind_of(e := Emission(n, placed, packed)) == kind][-1]


CASES = [
    (Embedded(), torch.zeros(1, 128, dtype=torch.int64), "norm"),
    (nn.GroupNorm(8, 64), torch.randn(1, 64, 16, 16), "norm"),
    (nn.LayerNorm(70_000), torch.randn(2, 70_000), "norm"),
    (Functional(lambda x: F.softmax(x, 1)), torch.randn(2, 1000), "softmax"),
    (Functional(lambda x: x.sum()), torch.randn(300, 1000), "reduce"),
    (Functional(lambda x: x.amax(0)), torch.randn(300, 1000), "reduce"),
]


@interpreted
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch: int) -> None:
    for module, x, kind in CASES:
        e = emission(module, x, kind)
        template = tactics.template(kind)
        template.emit(e, template.configs(e)[0])
        for step in e.steps:
            assert isinstance(step, Launch)
            assert isinstance(compile_kernel(step.kernel, arch), Cubin), step.kernel


def test_an_embedding_is_loaded_by_the_norm() -> None:
    e = emission(Embedded(), torch.zeros(1, 128, dtype=torch.int64), "norm")
    assert {"Gather", "Binary", "LayerNorm", "Cast"} <= {type(n.op).__name__ for n in e.node.op.body.nodes}  # type: ignore[attr-defined]


def test_long_sums_of_few_rows_take_two_kernels() -> None:
    module, x, _ = CASES[4]
    e = emission(module, x, "reduce")
    template = tactics.template("reduce")
    template.emit(e, template.configs(e)[0])
    assert len(e.steps) == 2 and e.steps[0].grid[1] > 50  # type: ignore[union-attr]


def test_float64_is_refused() -> None:
    e = emission(Functional(lambda x: F.softmax(x, 1)), torch.randn(2, 10, dtype=torch.float64), "softmax")
    with pytest.raises(Unsupported, match="float64"):
        tactics.template("softmax").configs(e)
