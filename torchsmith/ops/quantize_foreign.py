"""Quantization as other libraries write it into graphs: ModelOpt's fake quantization and torchao's pairs of fp8."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, current, expected
from torchsmith.ir.graph import Value
from torchsmith.ops.quantize import FP8, LIMITS, Scale, dequantize, fake_float8, fake_quantize, quantize
from torchsmith.ops.registry import late_converter


@late_converter("tensorrt::quantize_op")
def quantize_op(
    x: Value, amax: Value | None, num_bits: int, exponent_bits: int, unsigned: bool = False, narrow_range: bool = False, *_: Any
) -> Value:
    """ModelOpt's: x rounded to eight bits whose greatest number stands for amax. amax: () or shaped to be broadcast; None is 448.

    Bits of exponent make it fp8, none int8. Source: modelopt.torch.quantization, tensorrt.quantize_op.
    """
    if num_bits != 8 or exponent_bits not in (0, 4):
        raise Unsupported(
            f"quantization to {num_bits} bits, {exponent_bits} of them exponent; engines have int8 and fp8 with 4 bits of exponent"
        )
    if exponent_bits:
        scale, axis = (1.0, None) if amax is None else _scale(x, amax, 1 / LIMITS[FP8][1])
        return fake_float8(x, scale, axis)
    if amax is None:
        raise Unsupported("quantization to int8 without amax")
    greatest = 255 if unsigned else 127
    scale, axis = _scale(x, amax, 1 / greatest)
    return fake_quantize(x, scale, None, axis, 0 if unsigned else -127 if narrow_range else -128, greatest)


_PAIR = "torchao::quantize_affine_float8", "torchao::quantize_affine_float8_non_decomposed"


@late_converter(*_PAIR)
def quantize_affine_float8(x: Value, scale: Value, float8_dtype: torch.dtype = FP8) -> Value:
    """torchao's: x / scale, limited and rounded to fp8. Source: torchao.quantization.quant_primitives."""
    if float8_dtype != FP8:
        raise Unsupported(f"quantization to {float8_dtype}; engines have {FP8}")
    numbers, axis = _scale(x, scale, 1.0)
    return quantize(x, numbers, None, axis, *LIMITS[FP8], FP8)


@late_converter(*(f"torchao::de{name.removeprefix('torchao::')}" for name in _PAIR))
def dequantize_affine_float8(q: Value, scale: Value, output_dtype: torch.dtype = torch.float32) -> Value:
    numbers, axis = _scale(q, scale, 1.0)
    return dequantize(q, numbers, None, axis, expected().dtype)


def _scale(x: Value, numbers: Scale, factor: float) -> tuple[Value, int | None]:
    """factor times the numbers, in float32, and the dimension of x that they are along; None where there is only one.

    numbers: of one element, or shaped to be broadcast along one dimension of x. Raises Unsupported for others.
    """
    given = current().constants.get(numbers) if isinstance(numbers, Value) else torch.tensor(numbers)
    if given is None:
        raise Unsupported("quantization with a scale that is computed from the data; engines take constants")
    scale = given.double() * factor
    if scale.numel() == 1:
        return constant(scale.reshape(()).float(), "scale"), None
    axes = [dim for dim, size in enumerate(scale.shape) if size != 1]
    if scale.dim() != x.type.rank or len(axes) != 1:
        raise Unsupported(f"quantization of {x.type} with scales of shape {tuple(scale.shape)}; engines have one, or one a channel")
    return constant(scale.reshape(-1).float(), "scale"), axes[0]
