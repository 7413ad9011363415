"""Numbers in eight bits, and back: quantize/dequantize pairs, which fake-quantize ops become.

The eight bits are an integer, or a float of four bits of exponent and three of mantissa (e4m3fn, here fp8). Scales and zero points
are constants. A constant that is quantized is a constant of eight bits from then on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, current, expected
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.float8 import FP8 as FP8
from torchsmith.ops.float8 import GREATEST, along, quantized
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter, late_converter
from torchsmith.ops.unary import Unary

aten = torch.ops.aten

# The dtypes of eight bits that values are quantized to, and their limits.
OFFSET = 128  # from int8 to uint8
LIMITS = {torch.int8: (-128, 127), torch.uint8: (0, 255), FP8: (-GREATEST, GREATEST)}

Scale = Value | float
ZeroPoint = Value | int | None


@dataclass(frozen=True)
class Quantize(Op):
    """clamp(round(x * (1 / scale)) + zero_point, low, high), with ties to even and the reciprocal in float32, as ATen computes it.

    x: any shape, floating. scale: float32, () or (channels,) along dimension `axis` of x; zero_point: of the result's dtype and
    the scale's shape, 0 where it is not given. dtype: int8 or uint8. Infinities give the limits, NaN gives `low`.
    Source: the first half of aten.fake_quantize_per_tensor_affine and aten.fake_quantize_per_channel_affine.

    dtype float8_e4m3fn: clamp(x * (1 / scale), -448, 448), rounded to the nearest number of that dtype, with ties to even; low and
    high are -448 and 448, and there is no zero point. Infinities give the limits too, but NaN gives NaN, which fp8 has.
    """

    dtype: torch.dtype
    low: int
    high: int
    axis: int | None = None

    def infer(self, x: TensorType, scale: TensorType, zero_point: TensorType | None = None) -> TensorType:
        if not x.dtype.is_floating_point or x.dtype == FP8:
            raise Unsupported(f"quantization of {x}; it takes floating numbers of more than eight bits")
        if self.dtype not in LIMITS or not LIMITS[self.dtype][0] <= self.low < self.high <= LIMITS[self.dtype][1]:
            raise Unsupported(
                f"quantization to {self.low}..{self.high} as {self.dtype}; engines have int8, uint8 and float8_e4m3fn"
            )
        if self.dtype == FP8 and (self.low, self.high) != LIMITS[FP8]:
            raise Unsupported(f"quantization to {self.low}..{self.high} as {FP8}; engines have all of it, -448 to 448")
        _check(x, scale, zero_point, self.dtype, self.axis)
        return x.with_dtype(self.dtype)

    def reference(self, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        if self.dtype == FP8:
            return quantized(x, scale, self.axis)
        inverse = along(1.0 / scale, self.axis, x.dim())
        rounded = torch.round(x.to(torch.promote_types(x.dtype, torch.float32)) * inverse)
        if zero_point is not None:
            rounded = rounded + along(zero_point, self.axis, x.dim())
        return torch.nan_to_num(torch.clamp(rounded, self.low, self.high), nan=self.low).to(self.dtype)


@dataclass(frozen=True)
class Dequantize(Op):
    """(q - zero_point) * scale in float32, rounded to `dtype`.

    q: int8, uint8 or float8_e4m3fn, any shape. scale: float32, () or (channels,) along dimension `axis` of q; zero_point: of q's
    dtype and the scale's shape, 0 where it is not given, as it never is for floats.
    Source: the second half of aten.fake_quantize_per_tensor_affine and
    aten.fake_quantize_per_channel_affine.
    """

    dtype: torch.dtype
    axis: int | None = None

    def infer(self, q: TensorType, scale: TensorType, zero_point: TensorType | None = None) -> TensorType:
        if q.dtype not in LIMITS or not self.dtype.is_floating_point or self.dtype == FP8:
            raise Unsupported(
                f"dequantization of {q} to {self.dtype}; it takes int8, uint8 or float8_e4m3fn, and gives a wider floating dtype"
            )
        _check(q, scale, zero_point, q.dtype, self.axis)
        return q.with_dtype(self.dtype)

    def reference(self, q: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        numbers = q.to(torch.float32)
        if zero_point is not None:
            numbers = numbers - along(zero_point, self.axis, q.dim())
        return (numbers * along(scale, self.axis, q.dim())).to(self.dtype)


def _check(x: TensorType, scale: TensorType, zero_point: TensorType | None, dtype: torch.dtype, axis: int | None) -> None:
    if scale.dtype not in (torch.float32, torch.float64) or scale.rank != (axis is not None):
        raise Unsupported(f"quantization of {x} along {axis} with a scale of {scale}; it takes float32, one number a channel")
    if axis is not None and not (0 <= axis < x.rank and same(x.shape[axis], scale.shape[0])):
        raise Unsupported(f"quantization of {x} along dimension {axis} with {scale.shape[0]} scales")
    if zero_point is not None and dtype == FP8:
        raise Unsupported(f"quantization to {dtype} with a zero point {zero_point}; floats have none")
    if zero_point is not None and (zero_point.dtype != dtype or zero_point.shape != scale.shape):
        raise Unsupported(f"quantization to {dtype} with scales {scale} and zero points {zero_point}")


def quantize(x: Value, scale: Scale, zero_point: ZeroPoint, axis: int | None, low: int, high: int, dtype: torch.dtype) -> Value:
    """x in eight bits: a constant of them where x is a constant, a `Quantize` otherwise. Raises Unsupported."""
    op = Quantize(dtype, low, high, _axis(x, axis))
    parameters = _parameters(scale, zero_point, op.axis, dtype)
    tensor = current().constants.get(x)
    if tensor is None:
        quantized: Value = op(x, *parameters)
        return quantized
    op.infer(x.type, *(p.type for p in parameters))
    return constant(op.reference(tensor, *(current().constants[p] for p in parameters)), x.name)


def dequantize(q: Value, scale: Scale, zero_point: ZeroPoint, axis: int | None, dtype: torch.dtype) -> Value:
    """Eight-bit numbers as `dtype`. Unsigned constants around 128 become signed ones around 0. Raises Unsupported."""
    axis = _axis(q, axis)
    tensor = current().constants.get(q)
    if tensor is not None and tensor.dtype == torch.uint8 and _is_offset(zero_point):
        q, zero_point = constant((tensor.to(torch.int16) - OFFSET).to(torch.int8), q.name), None
    number: Value = Dequantize(dtype, axis)(q, *_parameters(scale, zero_point, axis, q.type.dtype))
    return number


def _is_offset(zero_point: ZeroPoint) -> bool:
    return zero_point is not None and bool((_known(zero_point, "zero point") == OFFSET).all())


def fake_quantize(x: Value, scale: Scale, zero_point: ZeroPoint, axis: int | None, low: int, high: int) -> Value:
    """x rounded to the numbers that eight bits have, as a quantize/dequantize pair. Raises Unsupported."""
    q = quantize(x, scale, zero_point, axis, low, high, torch.uint8 if low >= 0 else torch.int8)
    return dequantize(q, scale, zero_point, axis, x.type.dtype)


def _axis(x: Value, axis: int | None) -> int | None:
    return axis + x.type.rank if axis is not None and axis < 0 else axis


def _parameters(scale: Scale, zero_point: ZeroPoint, axis: int | None, dtype: torch.dtype) -> tuple[Value, ...]:
    """Scale and zero point as constants that ops take; no zero point where all are 0."""
    shape = () if axis is None else (-1,)
    scales = _known(scale, "scale").to(torch.float32).reshape(shape)
    points = torch.zeros_like(scales) if zero_point is None else _known(zero_point, "zero point").reshape(shape)
    if dtype == FP8 and bool(points.any()):
        raise Unsupported(f"quantization to {dtype} with a zero point other than 0; floats have none")
    least, greatest = LIMITS.get(dtype, (0, -1))
    if not bool(((points >= least) & (points <= greatest) & (points == points.round())).all()):
        raise Unsupported(f"quantization to {dtype} with a zero point that is no whole number of that dtype")
    scaled = constant(scales, "scale")
    return (scaled, constant(points.to(dtype).expand_as(scales).contiguous(), "zero_point")) if bool(points.any()) else (scaled,)


def _known(number: Value | float, what: str) -> Tensor:
    if not isinstance(number, Value):
        return torch.tensor(number, dtype=torch.float64)
    tensor = current().constants.get(number)
    if tensor is None:
        raise Unsupported(f"quantization with a {what} that is computed from the data; engines take constants")
    return tensor


@converter(aten.fake_quantize_per_tensor_affine.default, aten.fake_quantize_per_tensor_affine.tensor_qparams)
def fake_quantize_per_tensor(x: Value, scale: Scale, zero_point: ZeroPoint, quant_min: int, quant_max: int) -> Value:
    return fake_quantize(x, scale, zero_point, None, quant_min, quant_max)


@converter(aten.fake_quantize_per_channel_affine.default)
def fake_quantize_per_channel(x: Value, scale: Value, zero_point: Value, axis: int, quant_min: int, quant_max: int) -> Value:
    return fake_quantize(x, scale, zero_point, axis, quant_min, quant_max)


@converter(torch.ops.torchsmith.fake_quantize_float8.default)
def fake_float8(x: Value, scale: Value | float, axis: int | None = None) -> Value:
    """x rounded to fp8 numbers, as a quantize/dequantize pair. Raises Unsupported."""
    return dequantize(quantize(x, scale, None, axis, *LIMITS[FP8], FP8), scale, None, axis, x.type.dtype)


# PT2E's ops, which torchao or torch.ao registers.


@late_converter("quantized_decomposed::quantize_per_tensor", "quantized_decomposed::quantize_per_tensor.tensor")
def quantize_per_tensor(x: Value, scale: Scale, zero_point: ZeroPoint, quant_min: int, quant_max: int, dtype: torch.dtype) -> Value:
    if dtype == FP8:
        return _whole_float8(x, scale, zero_point, None, quant_min, quant_max)
    return quantize(x, scale, zero_point, None, quant_min, quant_max, dtype)


@late_converter("quantized_decomposed::quantize_per_channel")
def quantize_per_channel(
    x: Value, scales: Value, zero_points: Value, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Value:
    if dtype == FP8:
        return _whole_float8(x, scales, zero_points, axis, quant_min, quant_max)
    return quantize(x, scales, zero_points, axis, quant_min, quant_max, dtype)


def _whole_float8(x: Value, scale: Scale, zero_point: ZeroPoint, axis: int | None, low: int, high: int) -> Value:
    """As PT2E defines it: rounded to whole numbers before it is rounded to fp8, which could tell many more apart near 0."""
    axis = _axis(x, axis)
    (scales,) = (current().constants[value] for value in _parameters(scale, zero_point, axis, FP8))
    x = cast(x, torch.promote_types(x.type.dtype, torch.float32))
    inverse = along(1.0 / scales, axis, x.type.rank).to(x.type.dtype)
    if (tensor := current().constants.get(x)) is not None:
        whole = constant(torch.round(tensor * inverse), x.name)
    else:
        whole = Unary("round")(Binary("mul")(x, constant(inverse, "inverse")))
    return quantize(whole, 1.0, None, None, low, high, FP8)


@late_converter("quantized_decomposed::dequantize_per_tensor", "quantized_decomposed::dequantize_per_tensor.tensor")
def dequantize_per_tensor(
    q: Value, scale: Scale, zero_point: ZeroPoint, quant_min: int, quant_max: int, dtype: torch.dtype,
    *, out_dtype: torch.dtype | None = None,
) -> Value:  # fmt: skip
    return dequantize(q, scale, zero_point, None, expected().dtype)


@late_converter("quantized_decomposed::dequantize_per_channel")
def dequantize_per_channel(
    q: Value, scales: Value, zero_points: Value | None, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype,
    *, out_dtype: torch.dtype | None = None,
) -> Value:  # fmt: skip
    return dequantize(q, scales, zero_points, axis, expected().dtype)


# The ops that aten.fake_quantize_* are made of. They have no shape function, so that torch.export fails on symbolic sizes.
_MASKED = (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
)


@functools.cache
def teach_shapes() -> Any:
    """Tell PyTorch the results' shapes of fake-quantize ops, where it does not know them (2.11 to 2.14 do not)."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in _MASKED:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, lambda x, *_: (torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)), "Meta")
    return library


teach_shapes()
