"""Float8 pairs: in the kernels around them, and as products and attention of float8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.backends.cuda.float8 import FLOAT8, drawn, linear, narrow, pair
from tests.backends.cuda.interpreted.configs import GEMM_CONFIGS
from tests.backends.cuda.simulated import relative, stepped
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.cublas_float8 import CublasFloat8Config, CublasFloat8Template
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.backends.cuda.tactics.gemm_float8 import GemmFloat8Template
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import type_of
from torchsmith.ir.widen import widened
from torchsmith.ops.binary import Binary
from torchsmith.ops.concat import Concat
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.group_norm import GroupNorm
from torchsmith.ops.linear import Linear
from torchsmith.ops.matmul import MatMul
from torchsmith.ops.pool import AvgPool
from torchsmith.ops.quantize import dequantize, quantize
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.softmax import Softmax
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


@pytest.mark.parametrize("config", GEMM_CONFIGS, ids=str)
@pytest.mark.parametrize(("rows", "k", "n"), [(37, 300, 45), (64, 256, 32)])
def test_configurations(config: GemmConfig, rows: int, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GemmFloat8Template, "configs", lambda self, e: [config])
    x = torch.randn(rows, k).half()
    found, wanted, names = kernels(lambda b, x: pair(b, linear(b, pair(b, x, 0.01), n), 0.02), x)
    main = ["gemm", "gemm_sum"] if config.split_k > 1 else ["gemm_persistent" if config.programs else "gemm"]
    assert names == ["pointwise", *main, "pointwise"][: len(names)] and relative([found], [wanted]) < 5e-3


@pytest.mark.parametrize("variant", ["scaled", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizes", [True, False])
def test_the_library(quantizes: bool, dtype: torch.dtype, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its product, and one launch for what follows."""
    monkeypatch.setattr(tactics, "ORDER", ("cublas_float8", *(name for name in tactics.ORDER if name != "cublas_float8")))
    given = CublasFloat8Template.configs
    monkeypatch.setattr(CublasFloat8Template, "configs", lambda self, e: sorted(given(self, e), key=lambda c: c.variant != variant))

    def net(builder: Builder, x: Value) -> Value:
        y = linear(builder, pair(builder, x, 0.01), 48, bias=quantizes)
        return pair(builder, Unary("relu")(y), 0.02) if quantizes else y

    graph = graph_of(net, x := torch.randn(37, 64).to(dtype))
    steps, (found,) = stepped(graph, [x])
    (wanted,) = interpret(widened(graph), [x.double()])
    names = [s.kernel.function if isinstance(s, Launch) else f"[{type(s.op).__name__}]" for s in steps]
    alone = not quantizes and variant == "scaled" and dtype == torch.bfloat16
    assert names[:2] == ["pointwise", "[LibraryFloat8Linear]"] and ("pointwise" in names[2:]) != alone, names
    assert relative([found], [wanted]) < 2e-2


def test_sizes_that_the_library_has_no_product_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tactics, "ORDER", ("cublas_float8", *tactics.ORDER))
    _, _, names = kernels(lambda b, x: linear(b, pair(b, x, 0.01), 45), torch.randn(37, 64).half())
    assert names == ["pointwise", "gemm"]
    assert CublasFloat8Config("plain") == CublasFloat8Template.config_type("plain")


# ---- what moves, and what stays as it is ----------------------------------------------------------------------------------


def test_what_moves_elements_moves_bytes() -> None:
    def net(builder: Builder, x: Value) -> Value:
        y = linear(builder, pair(builder, x, 0.01), 48)
        y = Reshape((3, 7, 48))(pair(builder, Reshape((7, 3, 48))(y), 0.02))
        return linear(builder, y, 24)

    found, wanted, names = kernels(net, torch.randn(21, 40).half())
    assert names == ["pointwise", "gemm", "gemm"] and relative([found], [wanted]) < 5e-3


@pytest.mark.parametrize("width", [48, 33])
def test_concatenations_are_of_bytes(width: int) -> None:
    def net(builder: Builder, x: Value) -> Value:
        x = pair(builder, x, 0.01)
        y = Concat(1)(*(pair(builder, Unary("relu")(linear(builder, x, width, seed=s)), 0.02) for s in (1, 2)))
        return linear(builder, y, 24)

    found, wanted, names = kernels(net, torch.randn(21, 40).half())
    assert names[0] == "pointwise" and names[-1] == "gemm" and relative([found], [wanted]) < 5e-3, names


def test_weights_alone_are_folded() -> None:
    found, wanted, names = kernels(lambda b, x: linear(b, x, 24), torch.randn(33, 40))
    assert names == ["gemm"] and relative([found], [wanted]) < 1e-5


def test_other_products_stay_in_wider_floats() -> None:
    """A weight that has no pair, and one that is int8: what is rounded is rounded, and multiplied in halves."""

    def net(builder: Builder, x: Value) -> Value:
        y = Linear()(pair(builder, x, 0.01), builder.constant(torch.randn(24, 40).half()))
        whole = builder.constant(torch.randint(-127, 128, (16, 24), dtype=torch.int8))
        z: Value = Linear()(pair(builder, y, 0.1), dequantize(whole, 0.01, None, None, torch.float16))
        return z

    found, wanted, names = kernels(net, torch.randn(33, 40).half())
    assert names.count("gemm") == 2 and relative([found], [wanted]) < 5e-3


@pytest.mark.parametrize("axis", [1, None])
@pytest.mark.parametrize("dtype", [FLOAT8, torch.int8], ids=["f8", "int8"])
def test_products_with_constant_weights_are_layers(dtype: torch.dtype, axis: int | None) -> None:
    """Weights (K, N), as transformers' Conv1D has them."""

    def net(builder: Builder, x: Value) -> Value:
        q = torch.randint(-100, 100, (40, 24), generator=torch.Generator().manual_seed(3)).to(dtype)
        scale = builder.constant(torch.linspace(0.01, 0.02, 24)) if axis == 1 else 0.01
        low, high = (-448, 448) if dtype == FLOAT8 else (-127, 127)
        x = dequantize(quantize(x, 0.03125, None, None, low, high, dtype), 0.03125, None, None, torch.float16)
        y = MatMul()(x, dequantize(builder.constant(q), scale, None, axis, torch.float16))
        z: Value = Binary("add")(builder.constant(torch.ones(24).half()), y)
        return z

    graph = graph_of(net, x := torch.randn(2, 17, 40).half())
    steps, (found,) = stepped(graph, [x])
    (wanted,) = interpret(widened(graph), [x.double()])
    assert [s.kernel.function for s in steps if isinstance(s, Launch)] == ["pointwise", "gemm"]
    assert relative([found], [wanted]) < 1e-3


KINDS: dict[str, Callable[[Builder, Value], Value]] = {
    "reduce": lambda b, x: Reduce("mean", (2, 3), False)(x),
    "softmax": lambda b, x: Softmax(3)(x),
    "pool": lambda b, x: AvgPool((2, 2), (2, 2), (0, 0), False, True, 0)(x),
    "convolution": lambda b, x: Convolution((1, 1), ((1, 1), (1, 1)), (1, 1), 1)(x, b.constant(drawn(8, 16, 3, 3).half())),
    "depthwise": lambda b, x: Convolution((1, 1), ((1, 1), (1, 1)), (1, 1), 16)(x, b.constant(drawn(16, 1, 3, 3).half())),
    "group norm": lambda b, x: GroupNorm(4, 1e-5)(x),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kernels_write_and_read_float8(kind: str) -> None:
    """What they give, and what comes after them; where a kernel cannot, another one does it."""
    scale = 0.0625 if kind in ("convolution", "depthwise") else 2.0**-8

    def net(builder: Builder, x: Value) -> Value:
        return pair(builder, KINDS[kind](builder, dequantize(x, 0.0078125, None, None, torch.float16)), scale)

    x = (torch.randn(2, 16, 6, 8) * 112).clamp(-448, 448).to(FLOAT8)
    graph = graph_of(net, x)
    steps, (found,) = stepped(graph, [x])
    (wanted,) = interpret(widened(graph), [x])
    assert not any(type(getattr(s, "op", None)).__name__ == "Quantize" for s in steps)
    assert relative([found], [wanted]) < 2e-2
