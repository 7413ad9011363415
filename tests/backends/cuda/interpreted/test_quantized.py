"""Quantize/dequantize pairs: in the kernels around them, and as products of int8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.backends.cuda.interpreted.configs import GEMM_CONFIGS
from tests.backends.cuda.simulated import check, run, stepped
from tests.backends.cuda.simulated import graph_of as engine_graph
from torchsmith import Input
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.convolution import ConvolutionConfig, ConvolutionTemplate
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.backends.cuda.tactics.gemm_int8 import GemmInt8Template
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import type_of
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast
from torchsmith.ops.concat import Concat
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.layer_norm import LayerNorm
from torchsmith.ops.linear import Linear
from torchsmith.ops.pool import MaxPool
from torchsmith.ops.quantize import dequantize, fake_quantize, quantize
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.rms_norm import RmsNorm
from torchsmith.ops.unary import Unary

Net = Callable[[Builder, Value], Value]


def graph_of(net: Net, x: Tensor) -> Graph:
    with Builder() as builder:
        return builder.finish([net(builder, builder.input(type_of(x)))])


def kernels(net: Net, x: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """What the engine gives, what the graph's references give, and what ran."""
    graph = graph_of(net, x)
    steps, (found,) = stepped(graph, [x])
    (wanted,) = interpret(graph, [x])
    return found, wanted, [s.kernel.function if isinstance(s, Launch) else f"[{type(s.op).__name__}]" for s in steps]


def weights(*shape: int) -> Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)


def pair(x: Value, scale: float, zero_point: int = 0, dtype: torch.dtype = torch.int8) -> Value:
    low, high = (-128, 127) if dtype == torch.int8 else (0, 255)
    return fake_quantize(x, scale, zero_point, None, low, high)


def weight(builder: Builder, q: Tensor, scale: Tensor | float, dtype: torch.dtype = torch.float32) -> Value:
    given = builder.constant(scale) if isinstance(scale, Tensor) else scale
    return dequantize(builder.constant(q), given, None, 0 if isinstance(scale, Tensor) else None, dtype)


def linear(builder: Builder, x: Value, n: int, bias: bool = True) -> Value:
    """A layer of int8 weights whose scales are powers of two: float32 sums are exact."""
    k = x.type.shape[-1]
    assert isinstance(k, int)
    scales = 2.0 ** -(torch.arange(n) % 5 + 4).float()
    given = [weight(builder, weights(n, k), scales)]
    if bias:
        given.append(builder.constant(torch.arange(n).float() / 8))
    y: Value = Linear()(x, *given)
    return y


def one_by_one(x: Value, w: Value) -> Value:
    y: Value = Convolution((1, 1), ((0, 0), (0, 0)), (1, 1), 1)(x, w)
    return y


# ---- pointwise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("to", "zero_point"), [(torch.int8, 0), (torch.int8, -3), (torch.uint8, 0), (torch.uint8, 131)])
def test_quantize(dtype: torch.dtype, to: torch.dtype, zero_point: int) -> None:
    x = torch.cat([torch.randn(37) * 3, torch.arange(-300, 301) * 0.025, torch.tensor([1e30, -1e30, torch.inf, -torch.inf])])
    low, high = (-127, 127) if to == torch.int8 else (0, 255)

    def net(builder: Builder, x: Value) -> Value:
        return quantize(Binary("add")(x, x), 0.05, zero_point, None, low, high, to)

    found, wanted, names = kernels(net, x.to(dtype))
    assert names == ["pointwise"] and found.dtype == to
    if dtype == torch.float32:
        assert torch.equal(found, wanted)
    assert (found.int() - wanted.int()).abs().max() <= 1  # x + x is not rounded to a half


def test_not_a_number_is_the_least() -> None:
    found, wanted, _ = kernels(lambda b, x: quantize(x, 0.5, 0, None, -127, 127, torch.int8), torch.tensor([torch.nan, 1.0]))
    assert found.tolist() == wanted.tolist() == [-127, 2]


@pytest.mark.parametrize("zero_point", [0, 5])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_dequantize(dtype: torch.dtype, zero_point: int) -> None:
    x = torch.arange(-128, 128).to(dtype)
    found, wanted, names = kernels(lambda b, x: Unary("neg")(dequantize(x, 0.3, zero_point, None, torch.float32)), x)
    assert names == ["pointwise"] and torch.equal(found, wanted)


@pytest.mark.parametrize("axis", [1, 2])
def test_scales_of_channels(axis: int) -> None:
    x = torch.randn(2, 5, 7) * 4
    scales = torch.linspace(0.02, 0.08, x.shape[axis])

    def net(builder: Builder, x: Value) -> Value:
        return fake_quantize(Unary("neg")(x), builder.constant(scales), None, axis, -128, 127)

    found, wanted, names = kernels(net, x)
    assert names == ["pointwise"] and torch.equal(found, wanted)


# ---- products -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("zero_point", "to"), [(0, torch.int8), (7, torch.int8), (0, torch.uint8), (100, torch.uint8)])
@pytest.mark.parametrize("shape", [(37, 51), (2, 3, 64), (1, 130)])
def test_linear(shape: tuple[int, ...], zero_point: int, to: torch.dtype, bias: bool) -> None:
    def net(builder: Builder, x: Value) -> Value:
        y: Value = Unary("relu")(linear(builder, pair(x, 0.03125, zero_point, to), 45, bias))
        return y

    found, wanted, names = kernels(net, torch.randn(shape) + (1 if zero_point == 0 and to == torch.uint8 else 0))
    assert names == ["pointwise", "gemv" if shape[0] == 1 else "gemm"] and torch.equal(found, wanted)


def test_integers_flow_between_layers() -> None:
    """The first product quantizes, the second loads integers, and the residual is integers too."""

    def net(builder: Builder, x: Value) -> Value:
        first = pair(Unary("relu")(linear(builder, pair(x, 0.0625), 48)), 0.25, 0, torch.uint8)
        second = pair(Binary("add")(linear(builder, first, 48), first), 0.5)
        return linear(builder, second, 19)

    graph = graph_of(net, torch.zeros(21, 40))
    steps, (found,) = stepped(graph, [x := torch.randn(21, 40)])
    (wanted,) = interpret(graph, [x])
    assert [s.kernel.function for s in steps if isinstance(s, Launch)] == ["pointwise", "gemm", "gemm", "gemm"]
    assert torch.equal(found, wanted)
    assert [v.type.dtype for s in steps[:3] if isinstance(s, Launch) for v in s.writes] == [torch.int8] * 3


def test_half() -> None:
    """As the precision policy writes it: pairs in float32, the layer in float16."""
    x = torch.randn(33, 40)

    def net(builder: Builder, x: Value) -> Value:
        k = Cast(torch.float16)(weight(builder, weights(24, 40), torch.linspace(0.01, 0.03, 24)))
        y = Linear()(Cast(torch.float16)(pair(x, 0.03)), k, builder.constant(torch.randn(24).half()))
        z: Value = Cast(torch.float32)(Unary("relu")(y))
        return z

    found, wanted, names = kernels(net, x)
    assert names == ["pointwise", "gemm"]
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int) -> None:
    def net(builder: Builder, x: Value) -> Value:
        x = Unary("relu")(x)
        q = weight(builder, weights(24, 20, 1, 1), 2.0 ** -(torch.arange(24) % 5 + 4).float())
        y = Convolution((stride, stride), ((0, 0), (0, 0)), (1, 1), 1)(
            pair(x, 0.0625, 0, torch.uint8), q, builder.constant(torch.ones(24))
        )
        y = pair(Unary("relu")(y), 0.5)
        last = weight(builder, weights(40, 24, 1, 1), 2.0**-6)
        z: Value = Convolution((1, 1), ((0, 0), (0, 0)), (1, 1), 1)(y, last)
        return z

    found, wanted, names = kernels(net, torch.randn(2, 20, 6, 10))
    assert names.count("gemm") == 2 and len(names) == 3 and torch.equal(found, wanted)


def convolved(channels: int, filters: int, taps: int, stride: int, padding: int, zero_point: int) -> Net:
    """A 1×1 convolution, and one of `taps` by `taps` of what it gives."""

    def net(builder: Builder, x: Value) -> Value:
        first = weight(builder, weights(channels, 16, 1, 1), 2.0**-7)
        x = Convolution((1, 1), ((0, 0), (0, 0)), (1, 1), 1)(pair(x, 0.0625), first)
        w = weight(builder, weights(filters, channels, taps, taps), 2.0 ** -(torch.arange(filters) % 5 + 4).float())
        given = pair(Unary("relu")(x), 0.25, zero_point, torch.uint8 if zero_point == 0 else torch.int8), w
        sides = ((padding, padding), (padding, padding + 1))
        y: Value = Convolution((stride, stride), sides, (1, 1), 1)(*given, builder.constant(torch.ones(filters)))
        return pair(Unary("relu")(y), 0.5)

    return net


@pytest.mark.parametrize("zero_point", [0, 9])
@pytest.mark.parametrize(("channels", "taps", "stride", "padding"), [(16, 3, 1, 1), (35, 3, 2, 1), (64, 2, 1, 0)])
def test_convolution_of_neighbours(channels: int, taps: int, stride: int, padding: int, zero_point: int) -> None:
    found, wanted, names = kernels(convolved(channels, 40, taps, stride, padding, zero_point), torch.randn(2, 16, 5, 7))
    assert names == ["pointwise", "gemm", "convolution"] and torch.equal(found, wanted)


@pytest.mark.parametrize("zero_point", [0, 9])
@pytest.mark.parametrize(("groups", "channels", "filters"), [(2, 32, 48), (8, 32, 32), (3, 48, 51), (32, 32, 64)])
def test_convolution_in_groups(groups: int, channels: int, filters: int, zero_point: int) -> None:
    """Small ones are taken together."""

    def net(builder: Builder, x: Value) -> Value:
        w = weight(builder, weights(filters, channels // groups, 3, 3), 2.0 ** -(torch.arange(filters) % 5 + 4).float())
        given = pair(x, 0.0625, zero_point), w
        y: Value = Convolution((2, 1), ((1, 1), (1, 0)), (1, 1), groups)(*given, builder.constant(torch.ones(filters)))
        return pair(Unary("relu")(y), 0.5)

    found, wanted, names = kernels(net, torch.randn(2, channels, 5, 7))
    assert names == ["pointwise", "convolution"] and torch.equal(found, wanted)
    assert "convolution_int8" in {getattr(n.op, "kind", "") for n in fuse(graph_of(net, torch.zeros(2, channels, 5, 7))).nodes}


CONVOLUTIONS = [
    ConvolutionConfig(16, 32, 32, 2, 2),
    ConvolutionConfig(32, 16, 64, 4, 3),
    ConvolutionConfig(16, 32, 32, 2, 2, split=4),
]


@pytest.mark.parametrize("config", CONVOLUTIONS, ids=str)
def test_configurations_of_convolutions(config: ConvolutionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConvolutionTemplate, "configs", lambda self, e: [config])
    found, wanted, names = kernels(convolved(40, 24, 3, 1, 1, 0), torch.randn(2, 16, 5, 7))
    assert names[2:] == ["convolution", *(["sum_parts"] if config.split > 1 else [])] and torch.equal(found, wanted)


def test_few_channels_stay_floating() -> None:
    def net(builder: Builder, x: Value) -> Value:
        w = weight(builder, weights(16, 3, 3, 3), 2.0**-6)
        y: Value = Convolution((2, 2), ((1, 1), (1, 1)), (1, 1), 1)(pair(x, 0.0625), w)
        return y

    graph = fuse(graph_of(net, torch.zeros(1, 3, 8, 8)))
    assert not any("Integer" in str(node.op) for node in graph.nodes)
    found, wanted, _ = kernels(net, torch.randn(1, 3, 8, 8))
    assert torch.equal(found, wanted)


def test_what_moves_elements_moves_integers() -> None:
    def net(builder: Builder, x: Value) -> Value:
        y = linear(builder, pair(x, 0.0625), 48)
        y = Reshape((3, 7, 48))(pair(Reshape((7, 3, 48))(y), 0.5))
        return linear(builder, y, 24)

    found, wanted, names = kernels(net, torch.randn(21, 40))
    assert names == ["pointwise", "gemm", "gemm"] and torch.equal(found, wanted)


def test_pools_and_concatenations_give_integers() -> None:
    def net(builder: Builder, x: Value) -> Value:
        first, second = (weight(builder, weights(32, 16, 1, 1).roll(i, 0), 2.0**-7) for i in range(2))
        x = pair(x, 0.0625)
        parts = [pair(Unary("relu")(one_by_one(x, w)), 0.25, 0, torch.uint8) for w in (first, second)]
        pooled = MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False)(Concat(1)(*parts))
        return one_by_one(pooled, weight(builder, weights(24, 64, 1, 1), 2.0**-6))

    graph = fuse(graph_of(net, torch.zeros(2, 16, 6, 8)))
    found, wanted, names = kernels(net, torch.randn(2, 16, 6, 8))
    assert torch.equal(found, wanted) and names == ["pointwise", "gemm", "gemm", "pool", "gemm"], names
    assert sum("Integer" in str(node.op) for node in graph.nodes) == 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_norm_takes_scales(norm: str, bias: bool) -> None:
    """The channels' shares and the rounding's scale become its weight; LayerNorm's and what is added become its bias."""
    shares = (2.0 ** (torch.arange(40) % 3 - 1)).half()

    def net(builder: Builder, x: Value) -> Value:
        given = [builder.constant((torch.randn(40) + 1).half()) for _ in range(2 if bias and norm == "layer" else 1)]
        y = LayerNorm(1, 1e-5)(x, *given) if norm == "layer" else RmsNorm(1, 1e-5)(x, *given)
        y = Binary("mul")(y, builder.constant(shares))
        return Linear()(Cast(torch.float32)(pair(y, 0.0625)), weight(builder, weights(24, 40), 2.0**-7))

    graph, x = fuse(graph_of(net, torch.zeros(21, 40).half())), torch.randn(21, 40).half()
    assert not any("Binary[mul]" in str(node.op) for node in graph.nodes[:1]), graph
    found, wanted, names = kernels(net, x)
    assert names == ["norm", "gemm"]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # a last bit of float16 becomes a step here and there


def test_a_norm_that_something_else_takes_keeps_its_weight() -> None:
    def net(builder: Builder, x: Value) -> Value:
        y = LayerNorm(1, 1e-5)(x, builder.constant(torch.ones(40)))
        return Binary("add")(linear(builder, pair(Binary("mul")(y, builder.constant(torch.full((40,), 2.0))), 0.0625), 40), y)

    found, wanted, names = kernels(net, torch.randn(21, 40))
    assert names[0] == "norm" and float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("config", GEMM_CONFIGS, ids=str)
@pytest.mark.parametrize(("rows", "k", "n"), [(37, 300, 45), (64, 256, 32)])
def test_configurations(config: GemmConfig, rows: int, k: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GemmInt8Template, "configs", lambda self, e: [config])
    found, wanted, names = kernels(lambda b, x: pair(linear(b, pair(x, 0.0625, 3), n), 0.5), torch.randn(rows, k))
    main = ["gemm", "gemm_sum"] if config.split_k > 1 else ["gemm_persistent" if config.programs else "gemm"]
    assert names == ["pointwise", *main, "pointwise"][: len(names)] and torch.equal(found, wanted)


# ---- modules --------------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """With its weight rounded to int8 for each output channel."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("scale", layer.weight.detach().flatten(1).abs().amax(1) / 127)
        self.register_buffer("zero_point", torch.zeros(layer.weight.shape[0], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        w = torch.fake_quantize_per_channel_affine(self.layer.weight, self.scale, self.zero_point, 0, -127, 127)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, w, self.layer.bias)
        return F.conv2d(x, w, self.layer.bias, self.layer.stride, self.layer.padding, 1, self.layer.groups)


def signed(x: Tensor, scale: float) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)


def unsigned(x: Tensor, scale: float) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, 0, 0, 255)


class Bottleneck(nn.Module):
    """A residual block, a strided convolution, a depthwise one, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.wide, self.leave = (
            Layer(nn.Conv2d(*c, padding=c[2] // 2)) for c in ((32, 16, 1), (16, 16, 3), (16, 32, 1))
        )
        self.down, self.depthwise = Layer(nn.Conv2d(32, 24, 1, stride=2)), Layer(nn.Conv2d(24, 24, 3, padding=1, groups=24))
        self.head = Layer(nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = signed(x, 0.03)
        y = unsigned(self.enter(x).relu(), 0.01)
        y = signed(self.leave(unsigned(self.wide(y).relu(), 0.01)), 0.01)
        x = unsigned((x + y).relu(), 0.02)
        x = unsigned(self.depthwise(unsigned(self.down(x).relu(), 0.02)).relu(), 0.02)
        z: Tensor = self.head(signed(x.mean((2, 3)), 0.01))
        return z


class First(nn.Module):
    """A convolution on what the caller gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer(nn.Conv2d(32, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(signed(x, 0.03)).relu()
        return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pictures_are_turned_as_they_are_quantized(dtype: torch.dtype) -> None:
    assert check(First(), torch.randn(2, 32, 6, 5), dtype=dtype, limit=1.5).kernels == ["pointwise", "convolution"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_residual_block(dtype: torch.dtype) -> None:
    found = check(Bottleneck(), torch.randn(2, 32, 6, 6), dtype=dtype, limit=1.5)
    assert found.kernels == ["pointwise", "gemm", "convolution", "gemm", "gemm", "depthwise", "reduce", "gemv"]
    integers = [v.type.dtype for s in found.steps if isinstance(s, Launch) for v in s.writes].count(torch.int8)
    assert integers == 7


# ---- what stays as it is --------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Two convolutions, the second of what is never negative, whose integers have a zero point in kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(nn.Conv2d(16, 32, 1)), Layer(nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=2))

    def forward(self, x: Tensor) -> Tensor:
        return signed(self.second(unsigned(self.first(signed(x, 0.03)).relu(), 0.01)).relu(), 0.01)


def test_where_pictures_end_need_not_be_known() -> None:
    """The zero point is written around them."""
    sizes = Input((Dim("n", max=8), 16, Dim("h", max=64), Dim("w", max=64)))
    graph = engine_graph(Padded(), [sizes], torch.float32)
    for shape in ((2, 16, 5, 7), (1, 16, 8, 3)):
        x = torch.randn(*shape)
        found = run(graph, [x])
        assert found.kernels == ["pointwise", "gemm", "[Pad]", "convolution"]
        (wanted,) = interpret(graph, [x])
        assert (found.outputs[0] - wanted).abs().max() <= 0.0101 and (found.outputs[0] != wanted).float().mean() < 0.01


def test_weights_alone_are_folded() -> None:
    """Weights of a layer whose input has no pair are what they stand for."""
    found, wanted, names = kernels(lambda b, x: linear(b, x, 24), torch.randn(33, 40))
    assert names == ["gemm"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_weights_with_a_zero_point_stay_floating() -> None:
    def net(builder: Builder, x: Value) -> Value:
        q = dequantize(builder.constant(weights(24, 40)), 0.0625, 3, None, torch.float32)
        y: Value = Linear()(pair(x, 0.0625), q)
        return y

    found, wanted, names = kernels(net, torch.randn(33, 40))
    assert names == ["pointwise", "gemm"] and torch.equal(found, wanted)
