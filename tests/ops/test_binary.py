"""Functions of two numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint

A, B = rand(3, 7), rand(7, low=0.5, high=3.0)
SIGNED = torch.tensor([-7, -7, 7, 7, -6, 6, 0, 5, -5, -1, 1, 12, -12]), torch.tensor([2, -2, 2, -2, 3, -3, 4, 7, 7, 3, -3, -5, 5])
# dividends and divisors that float32 cannot tell from their neighbours
LARGE = (
    torch.tensor([2**31 - 1, -(2**31) + 1, 123456789, -123456789, 2**24 + 1, -(2**24) - 1, 99999999, 1700000000]),
    torch.tensor([3, 3, -7, 7, 2**24, 2**24 + 2, -10, 86400]),
)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda a, b: a + b, id="add"),
        pytest.param(lambda a, b: torch.add(a, b, alpha=0.3), id="add alpha"),
        pytest.param(lambda a, b: a - b, id="sub"),
        pytest.param(lambda a, b: torch.sub(a, b, alpha=2), id="sub alpha"),
        pytest.param(lambda a, b: torch.rsub(a, b, alpha=2), id="rsub"),
        pytest.param(lambda a, b: a * b, id="mul"),
        pytest.param(lambda a, b: a / b, id="div"),
        pytest.param(lambda a, b: torch.true_divide(a, b), id="true_divide"),
        pytest.param(lambda a, b: b**a, id="pow"),
        pytest.param(torch.maximum, id="maximum"),
        pytest.param(torch.minimum, id="minimum"),
        pytest.param(torch.max, id="max.other"),
        pytest.param(torch.min, id="min.other"),
        pytest.param(torch.fmax, id="fmax"),
        pytest.param(torch.fmin, id="fmin"),
        pytest.param(torch.atan2, id="atan2"),
        pytest.param(torch.hypot, id="hypot"),
        pytest.param(torch.copysign, id="copysign"),
    ],
)
def test_of_floats(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    OpCase(function, A, B).accepted()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda a, b: torch.div(a, b, rounding_mode="floor"), id="div floor"),
        pytest.param(lambda a, b: torch.div(a, b, rounding_mode="trunc"), id="div trunc"),
        pytest.param(torch.floor_divide, id="floor_divide"),
        pytest.param(torch.remainder, id="remainder"),
        pytest.param(torch.fmod, id="fmod"),
    ],
)
def test_division_with_remainder(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, b = SIGNED
    # quarters are exact in every dtype
    OpCase(lambda a, b: (function(a, b), function(a, 7), function(a, -3)), a / 4, b / 4).accepted()
    for pair in (SIGNED, LARGE):
        OpCase(lambda a, b: (function(a, b), function(a, 7), function(a, -3)), *pair).accepted()
    OpCase(function, *(t.to(torch.int32) for t in LARGE)).accepted()
    OpCase(function, randint(9, high=256, dtype=torch.uint8), randint(9, low=1, dtype=torch.uint8)).accepted()


def test_division_by_a_constant_gives_whole_numbers() -> None:
    """OpenVINO multiplies by the reciprocal: 49 * (1 / 49) is less than 1."""
    x = torch.arange(1.0, 2000.0)
    OpCase(
        lambda x: [torch.div(x, c, rounding_mode="floor") for c in (3.0, 41.0, 49.0, 91.0)], x, dtypes=(torch.float32,)
    ).accepted()
    OpCase(lambda x: [torch.remainder(x, c) for c in (3.0, 41.0, 49.0, 91.0)], x, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda a, b: (a + b, a - b, a * b, torch.maximum(a, b), torch.minimum(a, b)), id="arithmetic"),
        pytest.param(lambda a, b: (a & b, a | b, a ^ b, a & 6, a | 6, a ^ 6, 6 & a), id="bitwise"),
        pytest.param(lambda a, b: (torch.bitwise_and(a, 3), torch.bitwise_or(a, b), torch.bitwise_xor(a, b)), id="bitwise by name"),
        pytest.param(lambda a, b: (a + 2, a * 3, 5 - a, torch.rsub(a, 4), a / b, a / 2, a**2, a**2.0), id="with numbers"),
        pytest.param(lambda a, b: (torch.fmax(a, b), torch.fmin(a, b), torch.atan2(a, b)), id="others"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_of_integers(function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    low = 0 if dtype == torch.uint8 else -9
    OpCase(function, randint(3, 7, low=low, dtype=dtype), randint(7, low=1, dtype=dtype)).accepted()


def test_few_bits_wrap() -> None:
    x = torch.tensor([200, 100, 255, 3], dtype=torch.uint8)
    OpCase(lambda x: (x + x, x - 210, x * x), x).accepted()


def test_shifts() -> None:
    a, b = randint(3, 7, low=-99, high=99), randint(7, high=5)
    OpCase(
        lambda a, b: (a << b, a >> b, a << 2, a >> 2, torch.bitwise_left_shift(a, b), torch.bitwise_right_shift(a, 1)), a, b
    ).accepted()


def test_of_bools() -> None:
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    OpCase(lambda a, b: (a + b, a * b, a & b, a | b, a ^ b, torch.maximum(a, b), torch.minimum(a, b)), a, b).accepted()


@pytest.mark.parametrize(
    "a", [rand(4), torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])], ids=["float", "int", "bool"]
)
def test_logical(a: Tensor) -> None:
    b = torch.tensor([0.0, 0.0, 1.0, -2.0])
    OpCase(lambda a, b: (torch.logical_and(a, b), torch.logical_or(a, b), torch.logical_xor(a, b)), a, b).accepted()


def test_dtypes_are_promoted() -> None:
    f, i, u, t = rand(3), randint(3), randint(3, dtype=torch.uint8), torch.tensor([True, False, True])
    OpCase(
        lambda f, i, u, t: (f + i, i + u, u * t, t + 1, t * 0.5, i * 1.5, i / u.clamp(min=1), f * i[0], i[0] * f[0]), f, i, u, t
    ).accepted()


@pytest.mark.parametrize("number", [2, 3, 0.5, -1, -0.5, 0, 2.5])
def test_powers_that_are_numbers(number: float) -> None:
    OpCase(lambda x: x**number, rand(3, 7, low=0.3, high=2.0)).accepted()


def test_powers_of_a_number() -> None:
    OpCase(lambda x: (2**x, 0.5**x), rand(3, 7)).accepted()


def test_composed() -> None:
    a, b, w = rand(3, 7), rand(7), rand(3, 1)
    OpCase(lambda a, b, w: (torch.lerp(a, b.expand(3, 7), 0.3), torch.lerp(a, b.expand(3, 7), w)), a, b, w).accepted()
    OpCase(
        lambda a, b, w: (torch.addcmul(a, b, w, value=0.5), torch.addcdiv(a, b, w + 3, value=-2), torch.addcmul(a, a, b)), a, b, w
    ).accepted()


def test_special_numbers() -> None:
    inf, nan = torch.inf, torch.nan
    a = torch.tensor([1.0, nan, inf, -inf, 2.0, 0.0, nan])
    b = torch.tensor([nan, 1.0, -inf, 3.0, inf, 0.0, nan])
    OpCase(
        lambda a, b: (torch.fmax(a, b), torch.fmin(a, b), a + b, a * b, a / b, torch.pow(a, b)), a, b, dtypes=(torch.float32,)
    ).accepted()
    y, x = torch.tensor([0.0, 1.0, -1.0, 0.0, 0.0, 2.0, -2.0]), torch.tensor([0.0, 0.0, 0.0, 3.0, -3.0, -1.0, -1.0])
    OpCase(torch.atan2, y, x).accepted()
    OpCase(torch.hypot, torch.tensor([1e30, 0.0, 3.0]), torch.tensor([1e30, 0.0, -4.0]), dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("shapes", [((), ()), ((1,), (3, 1)), ((0, 3), (3,)), ((2, 1, 5), (3, 1)), ((), (2, 3))], ids=str)
def test_broadcasting(shapes: tuple[tuple[int, ...], ...]) -> None:
    OpCase(lambda a, b: (a + b, b * a), *(rand(*shape) for shape in shapes)).accepted()


def test_sizes_may_be_symbolic() -> None:
    OpCase(
        lambda a, b: (a + b, a * a.shape[0], a - a.shape[0], a // b), rand(3, 7), B, dynamic=[(0, 0)], dtypes=(torch.float32,)
    ).accepted()


@pytest.mark.parametrize(
    ("function", "inputs", "why"),
    [
        pytest.param(lambda a, b: a**b, (randint(3), randint(3)), "integers to powers", id="pow of integers"),
        pytest.param(lambda a: a * 1j, (rand(3),), "complex", id="complex"),
        pytest.param(lambda a, b: a + b, (rand(3).double(), rand(3).double()), "float64", id="float64"),
    ],
)
def test_refusals(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], why: str) -> None:
    OpCase(function, *inputs).refused(why, on="openvino")
