"""Functions of one number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.ops.unary import ALIASES, FUNCTIONS
from torchsmith.testing.op_case import OpCase, rand, randint

# where a function is defined, when not everywhere
DOMAINS = {
    "log": (0.1, 4.0), "log2": (0.1, 4.0), "log10": (0.1, 4.0), "log1p": (-0.9, 4.0), "sqrt": (0.0, 4.0), "rsqrt": (0.1, 4.0),
    "asin": (-0.99, 0.99), "acos": (-0.99, 0.99), "atanh": (-0.9, 0.9), "acosh": (1.1, 4.0), "erfinv": (-0.9, 0.9),
    "reciprocal": (0.5, 2.0), "lgamma": (0.5, 1.5), "tan": (-1.2, 1.2), "hardswish": (-5.0, 5.0), "hardsigmoid": (-5.0, 5.0),
}  # fmt: skip
NOT_ON_OPENVINO = ("lgamma", "erfc", "erfinv")
# of bools or integers, or written differently; they have tests of their own
ELSEWHERE = ("logical_not", "bitwise_not", "softplus", "logsigmoid")
CALLS = {"silu": F.silu, "mish": F.mish, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid}


def call(name: str):  # type: ignore[no-untyped-def]
    return CALLS.get(name) or (lambda x: getattr(torch.ops.aten, name)(x))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in (*NOT_ON_OPENVINO, *ELSEWHERE)])
def test_function(name: str) -> None:
    low, high = DOMAINS.get(name, (-2.0, 2.0))
    OpCase(call(name), rand(3, 7, low=low, high=high)).accepted()


@pytest.mark.parametrize("name", NOT_ON_OPENVINO)
def test_function_that_openvino_lacks(name: str) -> None:
    low, high = DOMAINS.get(name, (-2.0, 2.0))
    case = OpCase(call(name), rand(13, low=low, high=high), engines=())
    case.accepted()
    case.refused(f"OpenVINO has no {name}", on="openvino")


@pytest.mark.parametrize("name", [name for name, function in ALIASES.items() if function not in ELSEWHERE])
def test_alias(name: str) -> None:
    low, high = DOMAINS.get(ALIASES[name], (-2.0, 2.0))
    OpCase(call(name), rand(5, low=low, high=high), dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize(
    "name", ["exp", "sqrt", "sigmoid", "abs", "neg", "sign", "floor", "ceil", "round", "trunc", "relu", "isnan", "isfinite"]
)
def test_of_integers(name: str) -> None:
    OpCase(call(name), randint(3, 5, low=0 if name == "sqrt" else -4, high=5)).accepted()


def test_relu_of_large_integers_keeps_every_digit() -> None:
    OpCase(torch.relu, torch.tensor([2**24 + 1, -(2**24) - 1, 2**31 - 1])).accepted()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (1, 1, 1), (2, 3, 5, 7)])
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: torch.tanh(torch.relu(x)), rand(*shape), dynamic=[(0, 0)] if len(shape) == 4 else ()).accepted()


def test_special_numbers() -> None:
    x = torch.tensor([-math.inf, -3.5, -2.5, -0.5, 0.0, 0.5, 1.5, 2.5, math.inf, math.nan])
    with_nan = (torch.round, torch.trunc, torch.floor, torch.ceil, torch.isnan, torch.isinf, torch.isfinite, torch.abs, torch.tanh)
    without = (torch.relu, torch.sign, torch.sigmoid, torch.exp, torch.erf, torch.atan, F.hardsigmoid)
    OpCase(lambda x: [function(x) for function in with_nan], x).accepted()
    OpCase(lambda x: [function(x) for function in without], x[:-1], dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("name", ["log1p", "expm1"])
def test_near_zero_every_digit_stays(name: str) -> None:
    far = [0.6, -0.6, 3.0, 20.0] if name == "log1p" else [-90.0, -3.0, 1.5, 20.0]
    cases = torch.tensor([1e-7, -1e-7, 3e-5, -2e-4]), torch.tensor(far), torch.tensor([math.inf, 0.0, -1.0])
    OpCase(lambda *xs: [call(name)(x) for x in xs], *cases, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("x", [rand(3, 5), randint(3, 5, high=3), randint(4, high=2).bool()], ids=["float", "int", "bool"])
def test_logical_not(x: Tensor) -> None:
    OpCase(torch.logical_not, x).accepted()


@pytest.mark.parametrize(
    "x", [randint(3, 5, low=-4), randint(4, high=2).bool(), randint(5, dtype=torch.uint8)], ids=["int", "bool", "u8"]
)
def test_bitwise_not(x: Tensor) -> None:
    OpCase(torch.bitwise_not, x).accepted()


@pytest.mark.parametrize("decimals", [0, 2, -1])
def test_round_to_decimals(decimals: int) -> None:
    x = torch.tensor([0.12, -1.26, 37.4, -42.7, 0.0])
    OpCase(lambda x: torch.round(x, decimals=decimals), x, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("name", ["square", "frac", "deg2rad", "rad2deg", "positive"])
def test_composed(name: str) -> None:
    OpCase(lambda x: getattr(torch, name)(x) + 0, rand(3, 7), dynamic=[(0, 0)]).accepted()


def test_degrees_of_integers() -> None:
    OpCase(torch.deg2rad, randint(5, high=360)).accepted()


def test_negation_of_uint8_is_refused() -> None:
    OpCase(torch.neg, randint(4, dtype=torch.uint8)).refused("no negation of uint8", on="openvino")


def test_float64_is_refused() -> None:
    OpCase(torch.exp, rand(3).double()).refused("float64", on="openvino")
