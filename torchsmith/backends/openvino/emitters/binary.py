"""Functions of two numbers.

OpenVINO differs from PyTorch for NaN: `maximum` and `minimum` may give the other number. Its remainder by infinity is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, as_output, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.binary import Binary


def _like(x: ov.Output, value: float) -> Any:
    return ops.constant(value, x.get_element_type())


def _convert(x: Any, kind: ov.Type) -> Any:
    return ops.convert(x, kind.to_string())


def _quotient(a: ov.Output, b: ov.Output, floor: bool) -> tuple[Any, Any]:
    """a / b rounded down (or towards zero), and the remainder.

    The plain quotient is off by one where rounding to float32 crosses a whole number (OpenVINO multiplies by the
    reciprocal of a constant, and divides integers as float32), so that it is put right by its remainder.
    """
    kind = a.get_element_type()

    def divided(x: Any) -> Any:
        if kind.is_real():
            return ops.floor(ops.divide(x, b))
        return _convert(ops.divide(_convert(x, ov.Type.f32), _convert(b, ov.Type.f32)), kind)

    q = divided(a)
    r = ops.subtract(a, ops.multiply(q, b))
    if kind.is_integral():
        # integers beyond 2**24 have lost bits; the remainder, being small, has not
        q = ops.add(q, divided(r))
        r = ops.subtract(a, ops.multiply(q, b))
    sign, size, zero = ops.sign(b), ops.abs(b), _like(a, 0)
    towards = ops.multiply(r, sign)  # the remainder as if the divisor were positive
    step = ops.subtract(_convert(ops.less_equal(zero, ops.subtract(towards, size)), kind), _convert(ops.less(towards, zero), kind))
    q, r = ops.add(q, step), ops.subtract(r, ops.multiply(step, b))
    if not floor:
        # towards zero is one up where the signs differ and something remains
        up = ops.logical_and(ops.less(ops.multiply(ops.sign(a), sign), zero), ops.not_equal(r, zero))
        q, r = ops.add(q, _convert(up, kind)), ops.subtract(r, ops.multiply(_convert(up, kind), b))
    return q, r


def _fmod(a: ov.Output, b: ov.Output) -> Any:
    return ops.mod(a, b) if a.get_element_type().is_real() else _quotient(a, b, floor=False)[1]


def _remainder(a: ov.Output, b: ov.Output) -> Any:
    return ops.floor_mod(a, b) if a.get_element_type().is_real() else _quotient(a, b, floor=True)[1]


def _pow(a: ov.Output, b: ov.Output) -> Any:
    if a.get_element_type().is_integral():
        raise Unsupported("OpenVINO raises integers to powers in float32, which loses digits beyond 2**24; cast to float before it")
    return ops.power(a, b)


def _passing_nan(function: Callable[..., Any]) -> Callable[..., Any]:
    """fmax and fmin: the number where the other one is NaN."""

    def of(a: ov.Output, b: ov.Output) -> Any:
        chosen = function(a, b)
        if a.get_element_type().is_integral():
            return chosen
        return ops.select(ops.not_equal(a, a), b, ops.select(ops.not_equal(b, b), a, chosen))

    return of


def _atan2(y: ov.Output, x: ov.Output) -> Any:
    zero = _like(x, 0.0)
    angle = ops.atan(ops.divide(y, x))
    # in the left half, the angle of the opposite point was taken
    turn = ops.select(ops.less(y, zero), _like(x, -math.pi), _like(x, math.pi))
    angle = ops.select(ops.less(x, zero), ops.add(angle, turn), angle)
    return ops.select(ops.logical_and(ops.equal(x, zero), ops.equal(y, zero)), zero, angle)


def _hypot(a: ov.Output, b: ov.Output) -> Any:
    """Scaled by the longer side, so that the squares do not overflow."""
    a, b = ops.abs(a), ops.abs(b)
    long, short = ops.maximum(a, b), ops.minimum(a, b)
    one = _like(a.output(0), 1.0)
    ratio = ops.divide(short, ops.select(ops.equal(long, _like(a.output(0), 0.0)), one, long))
    return ops.multiply(long, ops.sqrt(ops.add(one, ops.multiply(ratio, ratio))))


def _copysign(a: ov.Output, b: ov.Output) -> Any:
    size = ops.abs(a)
    return ops.select(ops.less(b, _like(b, 0.0)), ops.negative(size), size)


FUNCTIONS: dict[str, Callable[[ov.Output, ov.Output], Any]] = {
    "add": ops.add,
    "sub": ops.subtract,
    "mul": ops.multiply,
    "div": ops.divide,
    "pow": _pow,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "fmax": _passing_nan(ops.maximum),
    "fmin": _passing_nan(ops.minimum),
    "div_floor": lambda a, b: _quotient(a, b, floor=True)[0],
    "div_trunc": lambda a, b: _quotient(a, b, floor=False)[0],
    "remainder": _remainder,
    "fmod": _fmod,
    "atan2": _atan2,
    "hypot": _hypot,
    "copysign": _copysign,
    "bitwise_and": ops.bitwise_and,
    "bitwise_or": ops.bitwise_or,
    "bitwise_xor": ops.bitwise_xor,
    "left_shift": ops.bitwise_left_shift,
    "right_shift": ops.bitwise_right_shift,
}
ON_BOOLS = {
    "add": ops.logical_or,
    "maximum": ops.logical_or,
    "mul": ops.logical_and,
    "minimum": ops.logical_and,
    "bitwise_and": ops.logical_and,
    "bitwise_or": ops.logical_or,
    "bitwise_xor": ops.logical_xor,
}


@emitter(Binary)
def binary(e: Emission, op: Binary, a: ov.Output, b: ov.Output) -> Any:
    kind = a.get_element_type()
    if kind == ov.Type.boolean:
        if op.function not in ON_BOOLS:
            raise Unsupported(f"OpenVINO has no {op.function} of bools")
        return ON_BOOLS[op.function](a, b)
    if op.function not in FUNCTIONS:
        raise Unsupported(f"OpenVINO has no {op.function}")
    if kind in (ov.Type.u8, ov.Type.i8, ov.Type.i16) and not op.function.startswith("bitwise"):
        # its arithmetic in few bits stops at the greatest number, where PyTorch's wraps
        wide = (as_output(_convert(x, ov.Type.i32)) for x in (a, b))
        return _convert(FUNCTIONS[op.function](*wide), kind)
    return FUNCTIONS[op.function](a, b)
