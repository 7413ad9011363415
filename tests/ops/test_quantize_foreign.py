"""torchao's ops, and ModelOpt's, which are defined here as that library defines them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.errors import CaptureError
from torchsmith.ir.interpret import interpret
from torchsmith.testing.op_case import OpCase, rand
from torchsmith.testing.pipeline import Pipeline

FP8 = torch.float8_e4m3fn


def quantize_op(
    x: Tensor, amax: Tensor | None, num_bits: int, exponent_bits: int, unsigned: bool = False, narrow_range: bool = False
) -> Any:
    if exponent_bits:
        scale = torch.tensor(1.0) if amax is None else amax.float() / 448
        return ((x.float() / scale).clamp(-448, 448).to(FP8).float() * scale).to(x.dtype)
    assert amax is not None
    greatest = 2 ** (num_bits - (not unsigned)) - 1
    least = 0 if unsigned else -greatest if narrow_range else -greatest - 1
    scale = amax.float() / greatest
    return ((x.float() / scale).round().clamp(least, greatest) * scale).to(x.dtype)


@pytest.fixture(scope="module", autouse=True)
def modelopt() -> Iterator[None]:
    """Its op, as it defines it: the library wants a GPU."""
    library: Any = torch.library.Library("tensorrt", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(
        "quantize_op(Tensor input, Tensor? amax, int num_bits, int exponent_bits, bool unsigned=False, bool narrow_range=False) "
        "-> Tensor"
    )
    library.impl("quantize_op", quantize_op, "CompositeExplicitAutograd")
    yield
    library._destroy()


@pytest.fixture
def torchao() -> Any:
    pytest.importorskip("torchao.quantization.quant_primitives", reason="torchao is not installed")
    return torch.ops.torchao


def alike(case: OpCase, *inputs: Tensor) -> list[str]:
    """Assert that the graph computes the function, but for ties that a reciprocal moves. Gives the names of its ops."""
    graph, wanted = case.graph(), case.function(*inputs)
    (given,) = interpret(graph, inputs)
    assert given.dtype == wanted.dtype
    off = ~torch.isclose(given, wanted, rtol=1e-5, atol=1e-6)
    assert off.sum() <= 2e-3 * off.numel()
    torch.testing.assert_close(given, wanted, rtol=0.13, atol=0.02)
    return [type(node.op).__name__ for node in graph.nodes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (1, 7), (31, 1), None], ids=str)
def test_modelopt_fp8(shape: tuple[int, ...] | None, dtype: torch.dtype) -> None:
    amax = None if shape is None else torch.rand(shape) + 0.5
    x = rand(31, 7).to(dtype)
    case = OpCase(lambda x: torch.ops.tensorrt.quantize_op(x, amax, 8, 4), x)
    assert alike(case, x) == ["Quantize", "Dequantize"]


@pytest.mark.parametrize(("unsigned", "narrow"), [(False, False), (False, True), (True, False)])
def test_modelopt_int8(unsigned: bool, narrow: bool) -> None:
    x, amax = rand(31, 7), torch.rand(31, 1) + 0.5
    case = OpCase(lambda x: torch.ops.tensorrt.quantize_op(x, amax, 8, 0, unsigned, narrow), x)
    assert alike(case, x) == ["Quantize", "Dequantize"]


def test_a_weight_of_modelopt_is_a_constant_of_fp8() -> None:
    weight = rand(5, 7)
    amax, greatest = torch.tensor(2.0), weight.abs().amax(1, keepdim=True)
    quantized = torch.ops.tensorrt.quantize_op

    def function(x: Tensor) -> Tensor:
        return torch.nn.functional.linear(quantized(x, amax, 8, 4), quantized(weight, greatest, 8, 4))

    case = OpCase(function, rand(31, 7))
    assert alike(case, rand(31, 7)) == ["Quantize", "Dequantize", "Dequantize", "Linear"]
    assert FP8 in {tensor.dtype for tensor in case.graph().constants.values()}


@pytest.mark.parametrize("shape", [(), (1,), (1, 7), (31, 1)], ids=str)
def test_torchao(shape: tuple[int, ...], torchao: Any) -> None:
    scale, x = torch.rand(shape) * 0.01 + 0.01, rand(31, 7)

    def function(x: Tensor) -> Tensor:
        q = torchao.quantize_affine_float8_non_decomposed(x, scale, FP8)
        y: Tensor = torchao.dequantize_affine_float8_non_decomposed(q, scale, torch.float16)
        return y

    assert alike(OpCase(function, x), x) == ["Quantize", "Dequantize"]


def test_refusals() -> None:
    quantized, one, many = torch.ops.tensorrt.quantize_op, torch.tensor(1.0), torch.ones(3, 4)
    OpCase(lambda x: quantized(x, one, 4, 0), rand(3)).refused("to 4 bits, 0 of them exponent; engines have int8 and fp8")
    OpCase(lambda x: quantized(x, x.abs().amax(), 8, 4), rand(3)).refused("computed from the data; engines take constants")
    OpCase(lambda x: quantized(x, many, 8, 4), rand(3, 4)).refused(r"shape \(3, 4\); engines have one, or one a channel")


def test_other_floats_of_torchao_are_refused(torchao: Any) -> None:
    one = torch.tensor(1.0)
    OpCase(lambda x: torchao.quantize_affine_float8_non_decomposed(x, one, torch.float8_e5m2), rand(3)).refused("e5m2")
    OpCase(lambda x: torch.ops.torchao.quantize_affine_float8_non_decomposed(x, one, torch.float8_e5m2), rand(3)).refused("e5m2")


@pytest.mark.parametrize(("amax", "why"), [(0.0, "positive"), (math.inf, "finite"), (math.nan, "finite")])
def test_ranges_of_modelopt_that_are_no_use_are_told(amax: float, why: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("amax", torch.tensor(amax))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.ops.tensorrt.quantize_op(x, self.amax, 8, 4)
            return y

    with pytest.raises(CaptureError, match=f"quantize_op.* and a scale is .*{why}"):
        Pipeline(Net().eval(), rand(3)).capture()


def test_a_model_of_modelopt_s_becomes_engines_of_fp8_or_of_floats() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 8)
            self.register_buffer("amax", torch.tensor(4.0))
            self.register_buffer("weight_amax", self.linear.weight.detach().abs().amax(1, keepdim=True))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.ops.tensorrt.quantize_op(x, self.amax, 8, 4)
            weight = torch.ops.tensorrt.quantize_op(self.linear.weight, self.weight_amax, 8, 4)
            return torch.nn.functional.linear(x, weight, self.linear.bias)

    model, x = Net().eval(), rand(5, 16)
    weight = quantize_op(model.linear.weight, model.get_buffer("weight_amax"), 8, 4)
    wanted = {
        "reference": model(x),
        "openvino": torch.nn.functional.linear(x, weight, model.linear.bias),
    }
    for backend, result in wanted.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OpenVINO has no fp8, and says so once
            fast = torchsmith.compile(model, inputs=[x], backend=backend, min_block_size=1, require_full_compilation=True)
        torch.testing.assert_close(fast(x), result, rtol=1e-3, atol=1e-3)
