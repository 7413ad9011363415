"""Functions of two numbers.

Quotients of floats that are rounded down are put right by what remains, as a division itself may round up to a whole number.
That fails where the quotient has more digits than float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters import _integers
from torchsmith.backends.tensorrt.emitters._pieces import (
    SMALL,
    both,
    dtype_of,
    either,
    is_float,
    is_nan,
    is_negative,
    like,
    no,
    select,
    wide,
    wrapped,
)
from torchsmith.backends.tensorrt.emitters.unary import truncated
from torchsmith.errors import Unsupported
from torchsmith.ops.binary import Binary

Function = Callable[[Emission, Any, Any], Any]


def _layer(name: str) -> Function:
    return lambda e, a, b: e.binary(name, a, b)


def _greater(order: str, wins: int) -> Function:
    """The greater or the smaller of two. Of a NaN and a number, the NaN (wins=0) or the number (wins=1)."""

    def of(e: Emission, a: Any, b: Any) -> Any:
        takes_a = either(e, e.binary(order, a, b), is_nan(e, (a, b)[wins]))
        return select(e, takes_a, a, b)

    return of


def _power(e: Emission, a: Any, b: Any) -> Any:
    """A square or a cube is multiplied out, as PyTorch does, so that a negative number is sure to have one."""
    known = e.known(1)
    exponent = known.item() if known is not None and known.numel() == 1 and len(b.shape) <= len(a.shape) else None
    if exponent not in (2, 3):
        return e.binary("POW", a, b)
    square = e.binary("PROD", a, a)
    return square if exponent == 2 else e.binary("PROD", square, a)


def _quotient(e: Emission, a: Any, b: Any) -> tuple[Any, Any]:
    """a / b rounded down, and the remainder, which has b's sign. NaN for an infinite a."""
    zero = like(e, 0, b)
    q = e.unary("FLOOR", e.binary("DIV", a, b))
    # nothing times infinity would be NaN
    r = select(e, e.binary("EQUAL", q, zero), a, _remaining(e, a, q, b))
    size = e.unary("ABS", b)
    towards = select(e, e.binary("LESS", b, zero), e.unary("NEG", r), r)
    divides, below = e.binary("GREATER", size, zero), e.binary("LESS", towards, zero)
    above = both(e, no(e, e.binary("LESS", towards, size)), divides)
    step = e.binary("SUB", e.to(above, dtype_of(a)), e.to(below, dtype_of(a)))
    moved = e.binary("SUB", r, e.binary("PROD", step, b))
    q = select(e, both(e, is_nan(e, r), divides), r, e.binary("SUM", q, step))
    return q, select(e, e.binary("EQUAL", step, zero), r, moved)


def _remaining(e: Emission, a: Any, q: Any, b: Any) -> Any:
    """a - q * b without rounding the product, whose factors are split into halves of twelve bits (Dekker, 1971)."""
    (q_high, q_low), (b_high, b_low) = _split(e, q), _split(e, b)
    r = a
    for x, y in ((q_high, b_high), (q_high, b_low), (q_low, b_high), (q_low, b_low)):
        r = e.binary("SUB", r, e.binary("PROD", x, y))
    # the halves of very great numbers overflow
    return select(e, is_nan(e, r), e.binary("SUB", a, e.binary("PROD", q, b)), r)


def _split(e: Emission, x: Any) -> tuple[Any, Any]:
    far = e.binary("PROD", x, like(e, 2**12 + 1, x))
    high = e.binary("SUB", far, e.binary("SUB", far, x))
    return high, e.binary("SUB", x, high)


def _fmod(e: Emission, a: Any, b: Any) -> Any:
    size = _quotient(e, e.unary("ABS", a), e.unary("ABS", b))[1]
    return select(e, e.binary("LESS", a, like(e, 0, a)), e.unary("NEG", size), size)


def _atan2(e: Emission, y: Any, x: Any) -> Any:
    """The angle in the first quadrant, turned by the signs."""
    high, far = e.unary("ABS", y), e.unary("ABS", x)
    ratio = select(e, e.binary("EQUAL", high, far), like(e, 1, high), e.binary("DIV", high, far))  # also of two infinities
    ratio = select(e, e.binary("EQUAL", high, like(e, 0, high)), high, ratio)
    ratio = select(e, is_nan(e, x), x, ratio)
    angle = e.unary("ATAN", ratio)
    angle = select(e, is_negative(e, x), e.binary("SUB", like(e, math.pi, angle), angle), angle)
    return select(e, is_negative(e, y), e.unary("NEG", angle), angle)


def _hypot(e: Emission, a: Any, b: Any) -> Any:
    """Scaled by the longer side, so that the squares do not overflow."""
    a, b = e.unary("ABS", a), e.unary("ABS", b)
    first = e.binary("GREATER", a, b)
    long, short = select(e, first, a, b), select(e, first, b, a)
    one = like(e, 1, long)
    ratio = select(e, e.binary("EQUAL", long, short), one, e.binary("DIV", short, long))
    length = e.binary("PROD", long, e.unary("SQRT", e.binary("SUM", one, e.binary("PROD", ratio, ratio))))
    # which is longer than anything, NaN included
    infinite = either(e, e.unary("ISINF", a), e.unary("ISINF", b))
    return select(e, infinite, like(e, math.inf, length), length)


def _copysign(e: Emission, a: Any, b: Any) -> Any:
    size = e.unary("ABS", a)
    return select(e, is_negative(e, b), e.unary("NEG", size), size)


# In the dtype that is given.
DIRECT: dict[str, Function] = {
    "add": _layer("SUM"),
    "sub": _layer("SUB"),
    "mul": _layer("PROD"),
    "div": _layer("DIV"),
    "maximum": _greater("GREATER", 0),
    "minimum": _greater("LESS", 0),
    "fmax": _greater("GREATER", 1),
    "fmin": _greater("LESS", 1),
    "copysign": _copysign,
}
# In float32 where 16 bits are given.
COMPOSED: dict[str, Function] = {
    "pow": _power,
    "div_floor": lambda e, a, b: _quotient(e, a, b)[0],
    "div_trunc": lambda e, a, b: truncated(e, e.binary("DIV", a, b)),
    "remainder": lambda e, a, b: _quotient(e, a, b)[1],
    "fmod": _fmod,
    "atan2": _atan2,
    "hypot": _hypot,
}
ON_INTEGERS: dict[str, Function] = {
    "add": _layer("SUM"),
    "sub": _layer("SUB"),
    "mul": _layer("PROD"),
    "maximum": _layer("MAX"),
    "minimum": _layer("MIN"),
    "fmax": _layer("MAX"),
    "fmin": _layer("MIN"),
    "div_floor": _layer("FLOOR_DIV"),
    "div_trunc": _integers.divided,
    "remainder": _integers.remainder,
    "fmod": _integers.fmod,
    "pow": _integers.power,
}
ON_BOOLS: dict[str, Function] = {
    **{name: _layer("OR") for name in ("add", "maximum", "fmax", "bitwise_or")},
    **{name: _layer("AND") for name in ("mul", "minimum", "fmin", "bitwise_and")},
    "bitwise_xor": _layer("XOR"),
}


@emitter(Binary)
def binary(e: Emission, op: Binary, a: Any, b: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    if dtype == torch.bool:
        if op.function not in ON_BOOLS:
            raise Unsupported(f"TensorRT has no {op.function} of bools")
        return ON_BOOLS[op.function](e, a, b)
    if is_float(a):
        if op.function in COMPOSED:
            return e.to(COMPOSED[op.function](e, wide(e, a), wide(e, b)), dtype)
        return DIRECT[op.function](e, a, b)
    if op.function.endswith("shift"):
        return _integers.shifted(e, op.function, a, b, dtype)
    if op.function not in ON_INTEGERS:
        raise Unsupported(f"TensorRT has no {op.function} of integers, but of bools alone")
    if dtype == torch.int8:
        a, b = e.to(a, torch.int32), e.to(b, torch.int32)
    y = ON_INTEGERS[op.function](e, a, b)
    return wrapped(e, y, dtype) if dtype in SMALL else y
