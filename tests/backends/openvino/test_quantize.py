"""Quantized layers really run in int8: the executed model's own word on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsmith.backends import get
from torchsmith.backends.openvino import engine as engines
from torchsmith.backends.openvino.widen import hint, is_mixed, widened
from torchsmith.config import BuildConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import TensorType
from torchsmith.ir.verify import verify
from torchsmith.ops.cast import Cast
from torchsmith.ops.grid_sample import GridSample
from torchsmith.ops.linear import Linear
from torchsmith.ops.permute import Permute
from torchsmith.ops.quantize import Dequantize, Quantize
from torchsmith.quantize.precision import reduce_precision
from torchsmith.target import this_cpu
from torchsmith.testing.compare import relative_error
from torchsmith.testing.op_case import OpCase, rand

LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
F32, BF16 = torch.float32, torch.bfloat16

needs_int8 = pytest.mark.skipif("avx2" not in this_cpu().features, reason="OpenVINO has int8 kernels for x86 with AVX2 and later")


class Pairs(nn.Module):
    """What networks share: each activation in the range that is asked for, symmetric where it has negatives."""

    def __init__(self, low: int, high: int, zero_point: int = 0) -> None:
        super().__init__()
        self.range = (zero_point, low, high)

    def q(self, x: Tensor, scale: float = 0.03) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, *self.range)

    def layer(self, name: str, *shape: int, axis: int = 0) -> Tensor:
        if name not in self._buffers:
            scale = rand(*shape).abs().transpose(0, axis).flatten(1).amax(1) / 127
            self.register_buffer(name, rand(*shape) / shape[1] ** 0.5)
            self.register_buffer(f"{name}_scale", scale / shape[1] ** 0.5)
            self.register_buffer(f"{name}_point", torch.zeros_like(scale, dtype=torch.int32))
        weight, scale, point = (self.get_buffer(f"{name}{end}") for end in ("", "_scale", "_point"))
        return torch.fake_quantize_per_channel_affine(weight, scale, point, axis, -127, 127)


class Convolutions(Pairs):
    """Plain, depthwise, grouped, pointwise, and a residual sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.q(torch.relu(F.conv2d(self.q(x), self.layer("a", 32, 16, 3, 3), padding=1)))
        y = self.q(torch.relu(F.conv2d(x, self.layer("b", 32, 1, 3, 3), padding=1, groups=32)))
        y = self.q(torch.relu(F.conv2d(y, self.layer("c", 32, 8, 3, 3), padding=1, groups=4)))
        x = self.q(F.conv2d(y, self.layer("d", 32, 32, 1, 1))) + x
        z: Tensor = F.conv2d(self.q(x), self.layer("e", 32, 32, 1, 1), stride=2)
        return z


class Products(Pairs):
    """Two linear layers, and a product of activations with a weight."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(self.q(x), self.layer("a", 64, 16)))
        x = torch.relu(F.linear(self.q(x), self.layer("b", 64, 64)))
        return self.q(x) @ self.layer("c", 64, 32, axis=1)


RANGES = [(0, 255, 0), (-128, 127, 0), (-127, 127, 0), (0, 127, 0), (-64, 63, 0), (0, 255, 114), (-128, 127, 7)]


def executed(graph: Graph) -> tuple[list[str], Any]:
    """The precisions that layers run in, and the engine's runner."""
    backend = get("openvino")
    engine = backend.build(graph, this_cpu(), BuildConfig(num_threads=1))
    nodes = [node.get_rt_info() for node in engines.unpack(engine, this_cpu()).get_runtime_model().get_ordered_ops()]
    precisions = [info["runtimePrecision"].astype(str) for info in nodes if info["layerType"].astype(str) in LAYERS]
    return precisions, backend.load(engine, this_cpu())


def graph_of(module: Pairs, x: Tensor) -> Graph:
    module(x)  # makes the weights
    return OpCase(module, x).graph()


@needs_int8
@pytest.mark.parametrize("range", RANGES, ids=str)
@pytest.mark.parametrize(("kind", "layers"), [(Convolutions, 5), (Products, 3)])
def test_layers_run_in_int8_and_are_exact_to_a_step(kind: type[Pairs], layers: int, range: tuple[int, int, int]) -> None:
    module, x = kind(*range), rand(2, 16, 16, 16) if kind is Convolutions else rand(5, 7, 16)
    graph = graph_of(module, x)
    precisions, run = executed(graph)
    assert len(precisions) == layers and set(precisions) <= {"u8", "i8"}, precisions
    (wanted,) = interpret(graph, [x])
    # numbers beside a tie may go to the other side of it
    assert relative_error(run([x])[0], wanted) < 2e-3


@needs_int8
@pytest.mark.skipif(not {"avx512_bf16", "amx_bf16"} & set(this_cpu().features), reason="no bfloat16 on this CPU")
@pytest.mark.parametrize("range", [(0, 255, 0), (-128, 127, 0)], ids=str)
def test_beside_int8_the_rest_runs_in_bfloat16(range: tuple[int, int, int]) -> None:
    class Mixed(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            y = F.conv2d(super().forward(x), self.get_buffer("d"))
            return F.conv2d(F.silu(y), self.get_buffer("e"))

    x, module = rand(2, 16, 16, 16), Mixed(*range)
    Convolutions.forward(module, x)
    graph = graph_of(module, x)
    reduced = reduce_precision(graph, BF16)
    verify(reduced, "quantize")
    precisions, run = executed(reduced)
    assert len(precisions) == 7 and set(precisions[:5]) <= {"u8", "i8"} and precisions[5:] == ["bf16", "bf16"], precisions
    (wanted,) = interpret(graph, [x])
    assert run([x])[0].dtype == F32
    assert relative_error(run([x])[0], wanted) < 4e-2


def test_a_graph_with_int8_and_bfloat16_is_written_in_float32() -> None:
    with Builder() as b:
        x = b.input(TensorType((2, 4), BF16))
        scale, w = b.constant(torch.tensor(0.01)), b.constant(rand(4, 4).bfloat16())
        y = Dequantize(BF16)(Quantize(torch.int8, -128, 127)(x, scale), scale)
        y = Linear()(Cast(BF16)(Cast(F32)(Linear()(y, w))), w)
        graph = b.finish([y])
    assert is_mixed(graph)
    wide = widened(graph)
    verify(wide, "widen")
    assert [v.type.dtype for v in (*wide.inputs, *wide.outputs)] == [BF16, BF16]
    assert [type(n.op).__name__ for n in wide.nodes] == ["Cast", "Quantize", "Dequantize", "Linear", "Linear", "Cast"]
    assert not is_mixed(graph_of(Products(0, 255), rand(2, 16)))
    inputs = [rand(2, 4).bfloat16()]
    assert relative_error(interpret(wide, inputs)[0], interpret(graph, inputs)[0]) < 1e-2


class Warped(Pairs):
    """What an int8 layer gives, sampled at a grid that is computed, and convolved in floats."""

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        y = F.conv2d(self.q(x), self.layer("a", 16, 16, 3, 3), padding=1)
        y = F.grid_sample(F.silu(y), torch.tanh(grid + 0.001) * 1.3, align_corners=False)
        self.layer("b", 16, 16, 3, 3)
        return F.conv2d(y, self.get_buffer("b"), padding=1)


def test_places_beside_int8_and_bfloat16_are_found_in_float32() -> None:
    x, grid, module = rand(1, 16, 64, 64), rand(1, 64, 64, 2), Warped(-128, 127)
    wanted = module(x, grid)
    graph = OpCase(module, x, grid).graph()
    reduced = reduce_precision(graph, BF16)
    assert is_mixed(reduced) and hint(reduced) == "f32"
    (sampled,) = (n for n in reduced.nodes if isinstance(n.op, GridSample))
    assert [v.type.dtype for v in sampled.inputs] == [F32, F32]
    backend, cpu = get("openvino"), this_cpu()
    (found,) = backend.load(backend.build(reduced, cpu, BuildConfig(num_threads=1)), cpu)([x, grid])
    assert relative_error(found, wanted) < 1e-2


@needs_int8
@pytest.mark.parametrize("stride", [1, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("kernel", [2, 3])
def test_a_transposed_convolution_is_right(stride: Any, dilation: Any, kernel: int) -> None:
    class Up(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.layer("a", 16, 8, kernel, kernel, axis=1)
            return F.conv_transpose2d(self.q(x), weight, stride=stride, padding=1, dilation=dilation)

    x = rand(2, 16, 9, 9)
    graph = graph_of(Up(0, 255), x)
    _, run = executed(graph)
    assert relative_error(run([x])[0], interpret(graph, [x])[0]) < 2e-3


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "product",
    [torch.matmul, F.linear, lambda x, w: x @ w.T, lambda x, w: x @ w[:, :4]],
    ids=["matmul", "linear", "transposed", "cut"],
)
def test_a_weight_may_have_a_scale_for_each_result_or_for_each_number_that_is_summed(
    product: Callable[[Tensor, Tensor], Tensor], axis: int
) -> None:
    class Weights(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            return product(x, self.layer("a", 16, 16, axis=axis))

    x = rand(5, 16)
    graph = graph_of(Weights(0, 255), x)
    _, run = executed(graph)
    assert relative_error(run([x])[0], interpret(graph, [x])[0]) < 1e-5


def test_what_moves_integers_about_may_stand_between() -> None:
    with Builder() as b:
        x = b.input(TensorType((4, 6), F32))
        scale, point = b.constant(torch.tensor(0.02)), b.constant(torch.tensor(9, dtype=torch.uint8))
        q = Quantize(torch.uint8, 0, 255)(x, scale, point)
        graph = b.finish([Dequantize(F32)(Permute((1, 0))(q), scale, point), q, Dequantize(F32)(q, b.constant(torch.tensor(0.5)))])
    _, run = executed(graph)
    inputs = [rand(4, 6)]
    for given, wanted in zip(run(inputs), interpret(graph, inputs), strict=True):
        torch.testing.assert_close(given, wanted)
