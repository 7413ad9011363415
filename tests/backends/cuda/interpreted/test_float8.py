"""Float8 pairs: in the kernels around them, and as products and attention of float8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.backends.cuda.float8 import FLOAT8, linear, narrow, pair
from tests.backends.cuda.simulated import relative, stepped
from torchsmith.backends.cuda.steps import Launch
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import type_of
from torchsmith.ir.widen import widened
from torchsmith.ops.binary import Binary
from torchsmith.ops.quantize import dequantize
from torchsmith.ops.unary import Unary

Net = Callable[[Builder, Value], Value]


def graph_of(net: Net, x: Tensor) -> Graph:
    with Builder() as builder:
        return builder.finish([net(builder, builder.input(type_of(x)))])


def kernels(net: Net, x: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """What the engine gives, what the graph means in float64, and what ran."""
    graph = graph_of(net, x)
    steps, (found,) = stepped(graph, [x])
    (wanted,) = interpret(widened(graph), [x.double() if x.dtype != FLOAT8 else x])
    return found, wanted, [s.kernel.function if isinstance(s, Launch) else f"[{type(s.op).__name__}]" for s in steps]


EVERY = torch.arange(256, dtype=torch.uint8).view(FLOAT8)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.float().nan_to_num(1e9), b.float().nan_to_num(1e9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_quantize(dtype: torch.dtype) -> None:
    """To the nearest, ties to even, saturating; NaN stays NaN."""
    numbers = EVERY.float()[:127]
    between = (numbers[1:] + numbers[:-1]) / 2
    odd = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan, 449.0, 465.0, -500.0, 2.0**-10, 2.0**-11])
    x = torch.cat([torch.randn(37) * 3, between, -between, odd]).to(dtype)
    found, _, names = kernels(lambda b, x: narrow(b, Unary("neg")(x), 0.5), x)
    wanted = (-x.float() * 2).clamp(-448, 448).to(FLOAT8)
    assert names == ["pointwise"] and found.dtype == FLOAT8 and same(found, wanted)


@pytest.mark.parametrize("axis", [None, 1, 2])
def test_pairs_in_one_kernel(axis: int | None) -> None:
    x = torch.randn(2, 5, 7) * 4
    scale: Tensor | float = 0.03 if axis is None else torch.linspace(0.02, 0.08, x.shape[axis])
    found, wanted, names = kernels(lambda b, x: Unary("neg")(pair(b, Unary("neg")(x), scale, axis)), x)
    assert names == ["pointwise"] and relative([found], [wanted]) < 1e-6


def test_dequantize() -> None:
    found, wanted, names = kernels(lambda b, x: Unary("neg")(dequantize(x, 0.3, None, None, torch.float32)), EVERY)
    assert names == ["pointwise"] and same(found, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 51), (2, 3, 64), (1, 130), (3, 300)])
def test_linear(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    def net(builder: Builder, x: Value) -> Value:
        y: Value = Unary("relu")(linear(builder, pair(builder, x, 0.01), 45, bias))
        return y

    found, wanted, names = kernels(net, torch.randn(shape).to(dtype))
    few = len(shape) == 2 and shape[0] < 5
    assert names == ["pointwise", "gemv" if few else "gemm"]
    assert relative([found], [wanted]) < {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]


def test_bytes_flow_between_layers() -> None:
    """The first product writes float8, the second loads it, and the residual is float8 too."""

    def net(builder: Builder, x: Value) -> Value:
        first = pair(builder, Unary("relu")(linear(builder, pair(builder, x, 0.01), 48)), 0.02)
        second = pair(builder, Binary("add")(linear(builder, first, 48, seed=3), first), 0.03)
        return linear(builder, second, 19, seed=5)

    graph = graph_of(net, x := torch.randn(21, 40).half())
    steps, (found,) = stepped(graph, [x])
    (wanted,) = interpret(widened(graph), [x.double()])
    launches = [s for s in steps if isinstance(s, Launch)]
    assert [s.kernel.function for s in launches] == ["pointwise", "gemm", "gemm", "gemm"]
    assert [v.type.dtype for s in launches[:3] for v in s.writes] == [FLOAT8] * 3
    assert relative([found], [wanted]) < 5e-3
