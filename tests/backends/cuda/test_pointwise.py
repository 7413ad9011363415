"""Pointwise, movement and pooling kernels compile for every architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import SM_90, graph_of
from torchsmith.backends.cuda import build
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.steps import Launch
from torchsmith.config import BuildConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops import binary, unary


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.function(*inputs)
        return found


def kernels_of(graph: Graph) -> list[Launch]:
    (emitted,), _, _ = build.emit(graph, SM_90, BuildConfig())
    assert all(isinstance(s, Launch) for s in emitted.steps), emitted.steps
    return [s for s in emitted.steps if isinstance(s, Launch)]


CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "flat": (lambda x, y: F.silu(x + y), [(4, 512, 16), (4, 512, 16)]),
    "tiled": (lambda x: x.permute(0, 2, 3, 1).flatten(1) * 2.0, [(2, 64, 20, 20)]),
    "concat": (lambda x, y: F.relu(torch.cat((x, y), 1)), [(2, 32, 8), (2, 16, 8)]),
    "comparison": (lambda x, y: (x > y) & (x < 0.5), [(300,), (300,)]),
    "integers": (lambda x: ((x * 100).long() % 7).to(torch.uint8), [(300,)]),
    "pool": (lambda x: F.max_pool2d(x, 3, 2, 1), [(2, 64, 20, 20)]),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), [(2, 16, 8, 8)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(case: str, arch: int) -> None:
    function, shapes = CASES[case]
    for launch in kernels_of(graph_of(Apply(function), [torch.randn(s) for s in shapes])):
        cubin = compile_kernel(launch.kernel, arch)
        assert isinstance(cubin, Cubin), cubin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_function_compiles(dtype: torch.dtype) -> None:
    """In one kernel: the sum of all."""
    with Builder({}) as builder:
        x = builder.input(TensorType((300,), dtype))
        y = builder.input(TensorType((300,), dtype))
        none = ("lgamma", *(("asin", "acos", "atan", "atanh", "erfc", "erfinv") if dtype == torch.float64 else ()))
        values = [unary.Unary(name)(x) for name in (*unary.FLOATING, "round", "trunc", "sign") if name not in none]
        without = ("atan2", "fmod", "remainder", "div_floor") if dtype == torch.float64 else ()
        values += [binary.Binary(name)(x, y) for name in (*binary.ARITHMETIC, *binary.FLOATING) if name not in without]
        total = values[0]
        for value in values[1:]:
            total = binary.Binary("add")(total, value)
        graph = builder.finish([total])
    for launch in kernels_of(graph):
        assert isinstance(compile_kernel(launch.kernel, 90), Cubin)
