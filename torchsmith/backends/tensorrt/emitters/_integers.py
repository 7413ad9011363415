"""Arithmetic of int32 and int64 that TensorRT has no layer for. Divisors are not 0."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission
from torchsmith.backends.tensorrt.emitters._pieces import SMALL, both, dtype_of, like, no, select, wrapped

BITS = {torch.uint8: 8, torch.int8: 8, torch.int32: 32, torch.int64: 64}


def remainder(e: Emission, a: Any, b: Any) -> Any:
    """What floor division leaves, which has the divisor's sign."""
    return e.binary("SUB", a, e.binary("PROD", b, e.binary("FLOOR_DIV", a, b)))


def divided(e: Emission, a: Any, b: Any) -> Any:
    """a / b towards zero: one above the floor where the signs differ and something remains."""
    q = e.binary("FLOOR_DIV", a, b)
    zero = like(e, 0, q)
    signs_differ = e.binary("XOR", e.binary("LESS", a, like(e, 0, a)), e.binary("LESS", b, like(e, 0, b)))
    remains = no(e, e.binary("EQUAL", e.binary("SUB", a, e.binary("PROD", b, q)), zero))
    return e.binary("SUM", q, e.to(both(e, signs_differ, remains), dtype_of(q)))


def fmod(e: Emission, a: Any, b: Any) -> Any:
    """What division towards zero leaves, which has the dividend's sign."""
    return e.binary("SUB", a, e.binary("PROD", b, divided(e, a, b)))


def power(e: Emission, a: Any, b: Any) -> Any:
    """a to the power of b by squaring.

    A negative power is 0 but for 1 and -1. Powers from 64 on are taken for the 64th or the 65th, so that those of 0, 1, -1 and
    of even numbers, which leave nothing in 64 bits, are right; others have overflown.
    """
    zero, two, most = (like(e, n, b) for n in (0, 2, 64))
    size = e.unary("ABS", b)
    parity = remainder(e, size, two)
    size = select(e, e.binary("GREATER", size, most), e.binary("SUM", most, parity), size)
    result, square = like(e, 1, a), a
    for bit in range(7):
        half = e.binary("FLOOR_DIV", size, two)
        odd = e.binary("GREATER", e.binary("SUB", size, e.binary("PROD", half, two)), zero)
        result = e.binary("PROD", result, select(e, odd, square, like(e, 1, a)))
        size = half
        square = e.binary("PROD", square, square) if bit < 6 else square
    is_one = e.binary("EQUAL", e.unary("ABS", a), like(e, 1, a))
    vanishes = both(e, e.binary("LESS", b, zero), no(e, is_one))
    return select(e, vanishes, like(e, 0, result), result)


def shifted(e: Emission, function: str, a: Any, b: Any, dtype: torch.dtype) -> Any:
    """a times, or divided down by, two to the power of b. dtype: that of a and b; int32 in the network where it is uint8."""
    if dtype == torch.int8:
        a, b = e.to(a, torch.int32), e.to(b, torch.int32)
    bits = BITS[dtype]
    inside = both(e, no(e, e.binary("LESS", b, like(e, 0, b))), e.binary("LESS", b, like(e, bits, b)))
    last = like(e, bits - 1, b)
    # two steps, as the greatest power of two is no number of the dtype
    count = select(e, inside, b, last)
    first = e.binary("FLOOR_DIV", count, like(e, 2, b))
    factors = [_power_of_two(e, n) for n in (first, e.binary("SUB", count, first))]
    operation = "PROD" if function == "left_shift" else "FLOOR_DIV"
    for factor in factors:
        a = e.binary(operation, a, factor)
    if function == "left_shift":
        a = select(e, inside, a, like(e, 0, a))
    return wrapped(e, a, dtype) if dtype in SMALL else a


def _power_of_two(e: Emission, n: Any) -> Any:
    """2 ** n for n from 0 to 32, in n's dtype; 2 ** 31 and more for int64 alone."""
    result, two = like(e, 1, n), like(e, 2, n)
    for bit in range(6 if dtype_of(n) == torch.int64 else 5):
        half = e.binary("FLOOR_DIV", n, two)
        odd = e.binary("GREATER", n, e.binary("PROD", half, two))
        result = e.binary("PROD", result, select(e, odd, like(e, 2 ** (2**bit), n), like(e, 1, n)))
        n = half
    return result
