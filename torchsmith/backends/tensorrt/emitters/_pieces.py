"""What several emitters compose their networks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import TYPE_NAMES, Emission
from torchsmith.backends.tensorrt.emitters.create import counted
from torchsmith.backends.tensorrt.library import trt
from torchsmith.ir.dim import Dim, Shape

DTYPES = {name: dtype for dtype, name in TYPE_NAMES.items() if dtype != torch.uint8}
HALVES = (torch.float16, torch.bfloat16)
SMALL = {torch.int8: -128, torch.uint8: 0}  # integers that are computed as int32, and the least of them


def dtype_of(x: Any) -> torch.dtype:
    """The tensor's dtype in the network, where uint8 is int32."""
    return DTYPES[x.dtype.name]


def is_float(x: Any) -> bool:
    return dtype_of(x).is_floating_point


def like(e: Emission, value: float, x: Any) -> Any:
    """A number of x's dtype and rank."""
    return e.number(value, dtype_of(x), len(x.shape))


def wide(e: Emission, x: Any) -> Any:
    """x in float32 where it has 16 bits."""
    return e.to(x, torch.float32) if dtype_of(x) in HALVES else x


def wrapped(e: Emission, x: Any, dtype: torch.dtype) -> Any:
    """Integers as int8 or uint8, which keep the lowest eight bits. x: int32 or int64; uint8 stays int32."""
    least = like(e, SMALL[dtype], x)
    above = e.binary("SUB", x, least)
    size = like(e, 256, x)
    bits = e.binary("SUB", above, e.binary("PROD", size, e.binary("FLOOR_DIV", above, size)))
    return e.to(e.binary("SUM", bits, least), dtype)


def select(e: Emission, condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b; all three broadcast."""
    rank = max(len(x.shape) for x in (condition, a, b))
    return e.layer(e.network.add_select(*(e.rank(x, rank) for x in (condition, a, b))))


def either(e: Emission, a: Any, b: Any) -> Any:
    return e.binary("OR", a, b)


def both(e: Emission, a: Any, b: Any) -> Any:
    return e.binary("AND", a, b)


def no(e: Emission, a: Any) -> Any:
    return e.unary("NOT", a)


def is_nan(e: Emission, x: Any) -> Any:
    """Where floats are NaN; the first versions of TensorRT 10 have no layer for it."""
    has_layer = hasattr(trt().UnaryOperation, "ISNAN")
    return e.unary("ISNAN", x) if has_layer else no(e, e.binary("EQUAL", x, x))


def polynomial(e: Emission, x: Any, coefficients: Sequence[float]) -> Any:
    """The sum of coefficients times powers of x, the highest first."""
    result = like(e, coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = e.binary("SUM", e.binary("PROD", result, x), like(e, coefficient, x))
    return result


def is_negative(e: Emission, x: Any) -> Any:
    """Where the sign of floats is a minus; also of -0, whose reciprocal is -inf."""
    zero = like(e, 0, x)
    return either(e, e.binary("LESS", x, zero), e.binary("LESS", e.unary("RECIP", x), zero))


def reduced(e: Emission, operation: str, x: Any, dims: Sequence[int], keepdim: bool) -> Any:
    """A `ReduceOperation` by name."""
    kind = getattr(trt().ReduceOperation, operation)
    return e.layer(e.network.add_reduce(x, kind, mask_of(dims), keepdim))


def any_of(e: Emission, x: Any, dims: Sequence[int], keepdim: bool) -> Any:
    """Whether one of the bools is true; none is where there are none."""
    count = reduced(e, "SUM", e.to(x, torch.int32), dims, keepdim)
    return e.binary("GREATER", count, like(e, 0, count))


def mask_of(dims: Sequence[int]) -> int:
    """Dimensions as TensorRT takes them: a bit for each."""
    return sum(1 << dim for dim in dims)


def numbers_along(e: Emission, size: Dim, axis: int, rank: int) -> Any:
    """0, 1, … along one dimension of `rank`, in int64; the others have size 1."""
    numbers = e.ints(range(size)) if isinstance(size, int) else counted(e, e.size(size))
    return e.reshape_to(numbers, [-1 if dim == axis else 1 for dim in range(rank)])


def filled(e: Emission, value: float, dtype: torch.dtype, shape: Shape) -> Any:
    """A tensor of one number."""
    if all(isinstance(size, int) for size in shape):
        return e.constant(torch.full([int(size) for size in shape], value, dtype=dtype))
    none = (0,) * len(shape)
    return e.sliced(e.number(value, dtype, len(shape)), none, shape, none)


def at_least_two(e: Emission, x: Any) -> Any:
    """x, or where it has one dimension a row of it: several layers take no vectors."""
    return e.rank(x, max(len(x.shape), 2))
