"""Numbers at which networks composed of TensorRT's layers lose digits, overflow in 16 bits, or meet their limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.cases import BF16, EIGHTHS, F16, F32, FLOATS, I64, Case, case, rand, whole
from tests.backends.tensorrt.checks import check
from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.ops import binary, unary
from torchsmith.ops.registry import load_all

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)
load_all()
NUMBERS = {
    "small": torch.tensor([1e-3, -1e-3, 3e-4, -2e-4, 7e-4]),
    "middling": torch.tensor([0.0, -0.0, 5, -5, 9, -9, 12, -12, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5]),
    "large": torch.tensor([20.0, -20, 88, -88, 95, -95, 300, -300, 3e4, -3e4]),
    "odd": torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 1.0]),
}
REFUSED = ("lgamma", "bitwise_not")  # the latter takes no floats


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("function", [f for f in unary.FUNCTIONS if f not in (*REFUSED, "logical_not")])
def test_functions_of_one_number(function: str, numbers: str) -> None:
    for dtype in FLOATS:
        check(case("Unary", function=function).make(), NUMBERS[numbers].to(dtype), build=False)


def crossed(*numbers: float, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    """Every number against every other."""
    given = torch.tensor(numbers, dtype=dtype)
    return given[:, None], given[None, :]


@pytest.mark.parametrize("function", [*binary.ARITHMETIC, *binary.FLOATING])
def test_functions_of_two_numbers(function: str) -> None:
    op = case("Binary", function=function).make()
    for dtype in FLOATS:
        check(op, *(t.to(dtype) for t in crossed(7, -7, 2, -2, 0.5, -0.5, 300, -300, 3.25, -1.75)), build=False)


@pytest.mark.parametrize("function", [f for f in binary.ARITHMETIC if f != "pow"])
def test_integers_of_either_sign(function: str) -> None:
    op = case("Binary", function=function).make()
    for dtype in (I64, torch.int32):
        check(op, *crossed(7, -7, 2, -2, 1, -1, 5, -5, dtype=dtype), build=False)


@pytest.mark.parametrize("function", ["add", "sub", "mul", "maximum", "minimum", "div_floor", "div_trunc", "remainder", "fmod"])
def test_integers_that_no_float_holds(function: str) -> None:
    a = torch.tensor([2**40 + 1, -(2**40) - 1, 2**53 + 1, 3])
    check(case("Binary", function=function).make(), a, torch.tensor([3, 7, 2**20 + 1, -2]), build=False)


@pytest.mark.parametrize("function", ["left_shift", "right_shift"])
def test_shifts(function: str) -> None:
    a = torch.tensor([5, -5, 2**20 + 1, -(2**20) - 1, 0])
    for dtype in (I64, torch.int32):
        check(case("Binary", function=function).make(), a[:, None].to(dtype), torch.tensor([0, 1, 3, 7]).to(dtype), build=False)


@pytest.mark.parametrize("function", ["add", "sub", "mul", "maximum", "minimum", "div_floor", "remainder"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_integers_of_eight_bits_wrap_around(function: str, dtype: torch.dtype) -> None:
    given = torch.tensor([1, 3, 100, 127, 128, 200, 255]).to(dtype)
    check(case("Binary", function=function).make(), given[:, None], given, build=False)


@pytest.mark.parametrize("function", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_integers_reduced(function: str, dtype: torch.dtype) -> None:
    given = torch.tensor([[1, 3, 100], [127, 128, 200]]).to(dtype)
    check(case("Reduce", function=function, dims=(1,), keepdim=False).make(), given, build=False)


@pytest.mark.parametrize("function", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_of_everything(function: str) -> None:
    op = case("Compare", function=function).make()
    for numbers in (NUMBERS["odd"], NUMBERS["middling"], torch.tensor([2**53, 2**53 + 1, -(2**40)]), torch.tensor([0, 200, 255])):
        check(op, numbers[:, None], numbers, build=False)
    check(op, *crossed(0, 100, 200, 255, dtype=torch.uint8), build=False)


LARGE = rand(4, 8, 16, low=200, high=400)
QKV = [rand(1, 2, 5, 16, low=low) for low in (-2.0, -1.0, 0.0)]
DIAGONAL = torch.eye(5).bool()
OFFSET = rand(2, 4, 6, 6) + 100
POOL: dict[str, Any] = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True}
SIDES: list[dict[str, Any]] = [
    {"stride": (3, 2), "padding": (0, 0), "output_padding": (2, 1)},
    {"stride": (3, 2), "padding": (1, 0), "output_padding": (2, 0)},
    {"stride": (1, 2), "padding": (2, 4), "output_padding": (0, 1)},
]
WIDE: list[Case] = [
    *(case("Reduce", LARGE, function=f, dims=(2,), keepdim=False) for f in ("mean", "l2", "max", "min", "sum", "l1")),
    case("Reduce", LARGE * 100, function="mean", dims=(1, 2), keepdim=True),
    case("LayerNorm", LARGE, rand(16), rand(16), dims=1, eps=1e-5),
    case("LayerNorm", LARGE, dims=2, eps=1e-5),
    case("RmsNorm", LARGE * 10, rand(16), dims=1, eps=1e-5),
    case("GroupNorm", OFFSET * 3, rand(4), rand(4), groups=2, eps=1e-5),
    case("BatchNorm", OFFSET, rand(4), rand(4), rand(4) + 100, rand(4, low=0.5, high=1.0), eps=1e-5),
    case("BatchNorm", rand(2, 4, 6, 6) * 1e-2, rand(4), rand(4), rand(4) * 1e-2, torch.full((4,), 1e-6), eps=1e-5),
    *(case(name, (rand(3, 7) * s), dim=1) for name in ("Softmax", "LogSoftmax") for s in (30, 1000)),
    case("LogSoftmax", torch.tensor([[12.0, 0.0, 0.0]]), dim=1),
    *(case("Gelu", rand(3, 50) * s, approximate=a) for a in ("none", "tanh") for s in (1, 100)),
    case("Elu", rand(3, 7) * 40, alpha=1.0, scale=1.0, input_scale=1.0),
    case("Elu", rand(3, 7) * 1e-3, alpha=1.3, scale=0.9, input_scale=0.7),
    case("AvgPool", LARGE[None] * 100, **POOL, count_include_pad=True, divisor=0),
    case("AvgPool", LARGE[None] * 100, **POOL, count_include_pad=False, divisor=0),
    case("AdaptiveAvgPool", LARGE[None] * 100, output=(3, 5)),
    case("AdaptiveAvgPool", LARGE[None] * 100, output=(1, 1)),
    case("MaxPool", -LARGE[None], **POOL, dilation=(1, 1)),
    case("MaxPool", whole(1, 2, 7, 7, low=-9, high=-1), **POOL, dilation=(1, 1)),
    case("MaxPoolIndices", -LARGE[None], **POOL, dilation=(1, 1)),
    case("AdaptiveMaxPool", -LARGE[None], output=(3, 5)),
    case("Attention", *(t * 20 for t in QKV), scale=1.0, causal=True),
    case("Attention", *QKV, DIAGONAL & (torch.arange(5) > 1)[:, None], scale=0.25, causal=False),
    case("Attention", *QKV, torch.zeros(5, 5).masked_fill(~DIAGONAL, -torch.inf), scale=1.0, causal=False),
    *(case("ConvolutionTransposed", OFFSET, rand(4, 3, 3, 3), rand(3), dilation=(1, 2), groups=1, **sides) for sides in SIDES),
    case("Cumulative", rand(2, 300, low=0.5, high=1.5), function="sum", dim=1),
    case("Clamp", NUMBERS["odd"], low=-0.5, high=0.5),
    case("Cast", torch.tensor([2.7, -2.7, 0.5, -0.5, 0.0, 1e-3, 250.0]), dtype=torch.bool),
    case("Cast", torch.tensor([2.7, -2.7, 0.5, -0.5, 0.0, 1e-3, 250.0]), dtype=I64),
]  # fmt: skip


@pytest.mark.parametrize("case", WIDE, ids=[f"{number}-{c}" for number, c in enumerate(WIDE)])
def test_sums_and_exponentials(case: Case) -> None:
    for dtype in FLOATS:
        check(case.make(), *(t.to(dtype) if t.is_floating_point() else t for t in case.inputs), build=False)


@pytest.mark.parametrize("function", ["max", "min"])
def test_the_first_of_equal_elements(function: str) -> None:
    x = torch.tensor([[2.0, 5, 5, 2, -1, -1], [0, 0, 0, 0, 0, 0]])
    for dtype in (*FLOATS, I64, torch.int32):
        check(case("ArgReduce", function=function, dim=1, keepdim=False).make(), x.to(dtype), build=False)


@pytest.mark.parametrize("largest", [False, True])
def test_a_stable_order_of_equal_elements(largest: bool) -> None:
    x = whole(3, 20, high=4)
    for dtype in (F32, F16, BF16, I64, torch.int32):
        check(case("TopK", k=20, dim=1, largest=largest, stable=True).make(), x.to(dtype), build=False)


@pytest.mark.parametrize("reduction", ["sum", "prod", "amax", "amin"])
def test_scattered_to_one_place_by_several(reduction: str) -> None:
    index = torch.tensor([[1, 1, 3], [0, 0, 0]])
    check(case("ScatterElements", dim=1, reduction=reduction).make(), rand(2, 5), index, rand(2, 3), build=False)
    check(case("ScatterElements", dim=1, reduction=reduction).make(), whole(2, 5), index, whole(2, 3), build=False)


@pytest.mark.parametrize("axis", [None, 1])
def test_quantized_numbers_stay_within_their_limits(axis: int | None) -> None:
    scale = torch.tensor(0.5) if axis is None else EIGHTHS
    x = torch.cat([rand(3, 5, 7, low=-100, high=100), torch.tensor([torch.inf, -torch.inf, 0.25, -0.25]).expand(3, 5, 4)], 2)
    for low, high in ((-128, 127), (-127, 127), (-8, 7)):
        check(case("Quantize", dtype=torch.int8, low=low, high=high, axis=axis).make(), x, scale, constants=(1,), build=False)
