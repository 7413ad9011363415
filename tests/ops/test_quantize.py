"""Quantize/dequantize pairs: ATen's fake quantization to the last bit, and PT2E's ops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchsmith.backends import get
from torchsmith.config import BuildConfig
from torchsmith.errors import Unsupported
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import TensorType
from torchsmith.ops.quantize import Dequantize, Quantize
from torchsmith.target import this_cpu
from torchsmith.testing.op_case import OpCase, rand

fake, fake_channels = torch.fake_quantize_per_tensor_affine, torch.fake_quantize_per_channel_affine

RANGES = [(-128, 127, 0), (-127, 127, 0), (-128, 127, 7), (0, 255, 0), (0, 255, 114), (0, 127, 57), (-64, 63, -3)]
POINTS = torch.tensor([0, 3, -5, 0, 17, -128, 127], dtype=torch.int32)


def exact(case: OpCase, *inputs: Tensor) -> None:
    """Assert that the interpreter gives ATen's bits, and OpenVINO the same numbers but for ties and last bits."""
    graph, backend = case.graph(), get("openvino")
    wanted = case.function(*inputs)
    (given,) = interpret(graph, inputs)
    assert torch.equal(given, wanted), (given - wanted).abs().max()
    run = backend.load(backend.build(graph, this_cpu(), BuildConfig(num_threads=1)), this_cpu())
    off = (run(list(inputs))[0] - wanted).abs() > 1e-5
    assert off.sum() <= 1e-3 * off.numel()


@pytest.mark.parametrize(("low", "high", "point"), RANGES)
@pytest.mark.parametrize("scale", [0.05, 1 / 127, 0.3])
def test_per_tensor(low: int, high: int, point: int, scale: float) -> None:
    x = rand(97, 101, low=-9.0, high=9.0)
    exact(OpCase(lambda x: fake(x, scale, point, low, high), x), x)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel(axis: int) -> None:
    x = rand(7, 7, 7, low=-9.0, high=9.0)
    scales = rand(7, low=0.01, high=0.1)

    def function(x: Tensor) -> Tensor:
        return fake_channels(x, scales, POINTS, axis % 3, -128, 127)

    exact(OpCase(function, x), x)


def test_ranges_that_are_tensors() -> None:
    x, scale, point = rand(31, 33), torch.tensor([0.02]), torch.tensor([5], dtype=torch.int32)
    exact(OpCase(lambda x: fake(x, scale, point, 0, 255), x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_computed_as_aten_does(dtype: torch.dtype) -> None:
    x = rand(31, 33).to(dtype)
    case = OpCase(lambda x: fake(x, 0.02, 3, -128, 127), x)
    assert torch.equal(interpret(case.graph(), [x])[0], case.function(x))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    x = rand(*shape)
    exact(OpCase(lambda x: fake(x, 0.02, 0, -128, 127), x), x)


def test_ties_go_to_even_and_what_is_not_finite_to_a_limit() -> None:
    quantize = Quantize(torch.int8, -127, 127)
    x = torch.tensor([0.5, 1.5, -2.5, math.inf, -math.inf, math.nan])
    assert quantize.reference(x, torch.tensor(1.0)).tolist() == [0, 2, -2, 127, -127, -127]


def test_a_constant_is_quantized_at_once() -> None:
    weight, scales, points = rand(4, 5), rand(4, low=0.01, high=0.02), torch.zeros(4, dtype=torch.int32)

    def function(x: Tensor) -> Tensor:
        return x @ fake_channels(weight, scales, points, 0, -127, 127)

    graph = OpCase(function, rand(3, 4)).graph()
    assert [type(node.op).__name__ for node in graph.nodes] == ["Dequantize", "MatMul"]
    assert [tensor.dtype for tensor in graph.constants.values()] == [torch.int8, torch.float32]
    exact(OpCase(function, rand(3, 4)), rand(3, 4))


def test_batch_may_be_symbolic() -> None:
    x = rand(5, 3)
    scale, scales = torch.tensor([0.1]), torch.tensor([0.1, 0.2, 0.3])
    point, points = torch.zeros(1, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)

    def network(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return fake(x, 0.5, 0, -128, 127), fake(x, scale, point, -128, 127), fake_channels(x, scales, points, 1, 0, 255)

    OpCase(network, x, dynamic=[(0, 0)], dtypes=(torch.float32,)).accepted()


def test_refusals() -> None:
    OpCase(lambda x: fake(x, 0.1, 0, -(2**15), 2**15 - 1), rand(3)).refused(
        "-32768..32767 as torch.int8; engines have int8, uint8 and float8_e4m3fn"
    )
    point = torch.zeros(1, dtype=torch.int32)
    OpCase(lambda x: fake(x, x.abs().amax(), point, 0, 255), rand(3)).refused(
        "a scale that is computed from the data; engines take constants"
    )
    OpCase(lambda x: fake(x, 0.1, 0, 0, 255), rand(3).double()).refused("float64", on="openvino")


def test_types_are_checked() -> None:
    f32, one, many = TensorType((2, 3), torch.float32), TensorType((), torch.float32), TensorType((3,), torch.float32)
    assert Quantize(torch.uint8, 0, 255, 1).infer(f32, many) == f32.with_dtype(torch.uint8)
    assert Dequantize(torch.bfloat16).infer(f32.with_dtype(torch.int8), one) == f32.with_dtype(torch.bfloat16)
    for op, inputs, why in [
        (Quantize(torch.int8, -128, 127), (f32.with_dtype(torch.int64), one), "it takes floating numbers"),
        (Quantize(torch.int8, -128, 127, 0), (f32, many), "along dimension 0 with 3 scales"),
        (Quantize(torch.int8, -128, 127), (f32, many), "one number a channel"),
        (Quantize(torch.int8, 5, 5), (f32, one), "5..5"),
        (Quantize(torch.int8, -128, 127), (f32, one, one), "zero points"),
        (Dequantize(torch.float32), (f32, one), "takes int8, uint8 or float8_e4m3fn"),
    ]:
        with pytest.raises(Unsupported, match=why):
            op.infer(*inputs)


FP8 = torch.float8_e4m3fn


def test_fp8_is_the_nearest_number_with_ties_to_even_within_the_range() -> None:
    quantize = Quantize(FP8, -448, 448)
    x = torch.tensor([17.0, 19.0, -2.1, 2.0**-9, 2.0**-10, 447.0, 1e9, math.inf, -math.inf])
    q = quantize.reference(x, torch.tensor(1.0))
    assert q.dtype == FP8
    assert q.float().tolist() == [16.0, 20.0, -2.0, 2.0**-9, 0.0, 448.0, 448.0, 448.0, -448.0]
    assert bool(quantize.reference(torch.tensor([math.nan]), torch.tensor(1.0)).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("axis", [None, 1])
def test_fp8_pairs_keep_three_bits_of_mantissa(dtype: torch.dtype, axis: int | None) -> None:
    x = rand(31, 7, low=-9.0, high=9.0).to(dtype)
    scale = torch.tensor(9 / 448) if axis is None else rand(7, low=0.02, high=0.03)
    q = Quantize(FP8, -448, 448, axis).reference(x, scale)
    y = Dequantize(dtype, axis).reference(q, scale)
    assert y.dtype == dtype
    normal = x.abs() > 2.0**-6 * scale
    error = (y.double() - x.double()).abs()
    assert bool((error[normal] <= x.double().abs()[normal] * (2.0**-4 + 2.0**-8)).all())
    assert bool((error <= 2.0**-10 * scale + x.double().abs() * (2.0**-4 + 2.0**-8)).all())


def test_fp8_types_are_checked() -> None:
    f32, one = TensorType((2, 3), torch.float32), TensorType((), torch.float32)
    f8 = f32.with_dtype(FP8)
    assert Quantize(FP8, -448, 448).infer(f32, one) == f8
    assert Dequantize(torch.float16).infer(f8, one) == f32.with_dtype(torch.float16)
    assert str(f8) == "f8[2, 3]"
    for op, inputs, why in [
        (Quantize(FP8, -240, 240), (f32, one), "-448 to 448"),
        (Quantize(FP8, -500, 448), (f32, one), "-500..448"),
        (Quantize(FP8, -448, 448), (f32, one, one.with_dtype(FP8)), "floats have none"),
        (Quantize(FP8, -448, 448), (f8, one), "more than eight bits"),
        (Dequantize(FP8), (f8, one), "wider"),
    ]:
        with pytest.raises(Unsupported, match=why):
            op.infer(*inputs)


def test_pt2e_ops() -> None:
    import torch.ao.quantization.fx._decomposed  # registers them

    ops = torch.ops.quantized_decomposed
    scales, weight = rand(6, low=0.01, high=0.1), rand(6, 5)
    points, scale, point = torch.zeros(6, dtype=torch.int64), torch.tensor(0.02), torch.tensor(-3)
    integers = ops.quantize_per_channel(weight, scales, points, 0, -127, 127, torch.int8)

    def network(x: Tensor) -> Tensor:
        x = ops.quantize_per_tensor.default(x, 0.03, 120, 0, 255, torch.uint8)
        x = ops.dequantize_per_tensor.default(x, 0.03, 120, 0, 255, torch.uint8)
        w = ops.dequantize_per_channel.default(integers, scales, points, 0, -127, 127, torch.int8)
        x = torch.nn.functional.linear(x, w)
        x = ops.quantize_per_tensor.tensor(x, scale, point, -128, 127, torch.int8)
        y: Tensor = ops.dequantize_per_tensor.tensor(x, scale, point, -128, 127, torch.int8)
        return y

    x = rand(9, 5)
    graph = OpCase(network, x).graph()
    names = [type(node.op).__name__ for node in graph.nodes]
    assert names == ["Quantize", "Dequantize", "Dequantize", "Linear", "Quantize", "Dequantize"]
    exact(OpCase(network, x), x)


def test_pt2e_rounds_to_whole_numbers_before_fp8() -> None:
    import torch.ao.quantization.fx._decomposed  # registers them

    ops = torch.ops.quantized_decomposed
    weight, scales, points = rand(6, 5), torch.rand(6) * 0.003 + 0.002, torch.zeros(6, dtype=torch.int64)

    def network(x: Tensor) -> Tensor:
        x = ops.quantize_per_tensor.default(x, 0.02, 0, -448, 448, FP8)
        x = ops.dequantize_per_tensor.default(x, 0.02, 0, -448, 448, FP8)
        w = ops.quantize_per_channel.default(weight, scales, points, 0, -448, 448, FP8)
        w = ops.dequantize_per_channel.default(w, scales, None, 0, -448, 448, FP8)
        return torch.nn.functional.linear(x, w)

    case, x = OpCase(network, rand(9, 5)), rand(9, 5, low=-0.1, high=0.1)
    (given,) = interpret(case.graph(), [x])
    # PyTorch has no product of fp8 and scales, so that its own dequantize_per_channel fails
    w = ops.quantize_per_channel.default(weight, scales, points, 0, -448, 448, FP8).float() * scales[:, None]
    rounded = ops.quantize_per_tensor.default(x, 0.02, 0, -448, 448, FP8).float() * 0.02
    torch.testing.assert_close(given, torch.nn.functional.linear(rounded, w))
    assert [type(node.op).__name__ for node in case.graph().nodes][-3:] == ["Dequantize", "Dequantize", "Linear"]
    assert {FP8, torch.float32} == {tensor.dtype for tensor in case.graph().constants.values()}


def test_pt2e_fp8_refusals() -> None:
    import torch.ao.quantization.fx._decomposed  # registers them

    quantized = torch.ops.quantized_decomposed.quantize_per_tensor.default
    OpCase(lambda x: quantized(x, 0.1, 3, -448, 448, FP8).float(), rand(3)).refused("zero point other than 0; floats have none")
    OpCase(lambda x: quantized(x, 0.1, 0, -240, 240, FP8).float(), rand(3)).refused("engines have all of it, -448 to 448")


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_fake_quantization_to_fp8(axis: int | None, dtype: torch.dtype) -> None:
    scale = torch.tensor(0.01) if axis is None else rand(7, low=0.01, high=0.02)
    x = rand(7, 31, 7).to(dtype)
    case = OpCase(lambda x: torch.ops.torchsmith.fake_quantize_float8(x, scale, axis), x)
    (given,) = interpret(case.graph(), [x])
    assert torch.equal(given, case.function(x)) and given.dtype == dtype
    assert [type(node.op).__name__ for node in case.graph().nodes] == ["Quantize", "Dequantize"]
