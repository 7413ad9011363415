"""Comparisons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchsmith.ops.compare import ALIASES, FUNCTIONS
from torchsmith.testing.op_case import OpCase, rand, randint

LARGE = (
    torch.tensor([2**31 - 1, -(2**31) + 1, 2**24, 2**24 + 1, -(2**24) - 1, 5, 5, -5]),
    torch.tensor([2**31 - 2, 2**31 - 1, 2**24 + 1, 2**24, -(2**24), 5, 6, -6]),
)


def all_of(a: Tensor, b: Tensor | float) -> list[Tensor]:
    return [getattr(torch, name)(a, b) for name in FUNCTIONS]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0]), id="float"),
        pytest.param(rand(3, 1), rand(5), id="broadcast"),
        pytest.param(*LARGE, id="int64"),
        pytest.param(*(t.to(torch.int32) for t in LARGE), id="int32"),
        pytest.param(randint(9, dtype=torch.uint8), randint(9, dtype=torch.uint8).flip(0), id="uint8"),
        pytest.param(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]), id="bool"),
        pytest.param(randint(9), rand(9, low=0.0, high=9.0), id="int and float"),
        pytest.param(rand(0, 3), rand(3), id="empty"),
        pytest.param(rand(), rand(), id="no dimensions"),
    ],
)
def test_of_tensors(a: Tensor, b: Tensor) -> None:
    OpCase(all_of, a, b).accepted()


@pytest.mark.parametrize("b", [2, 2.5, True])
def test_with_numbers(b: float) -> None:
    OpCase(lambda x, y: (all_of(x, b), all_of(y, b)), torch.tensor([1.0, 2.0, 2.5, 3.0]), randint(5, high=5)).accepted()


def test_nan_is_beside_every_order() -> None:
    x, y = torch.tensor([torch.nan, 1.0, torch.nan, torch.inf]), torch.tensor([1.0, torch.nan, torch.nan, -torch.inf])
    OpCase(all_of, x, y).accepted()


def test_aliases() -> None:
    OpCase(
        lambda a, b: [getattr(torch, name)(a, b) for name in ALIASES], rand(5), rand(5).flip(0), dtypes=(torch.float32,)
    ).accepted()


def test_sizes_may_be_symbolic() -> None:
    OpCase(lambda x: (x > 0, x < x.shape[0], x == x[:1]), rand(3, 5), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize(
    "options", [{}, {"rtol": 0.1}, {"atol": 0.5, "rtol": 0}, {"equal_nan": True}, {"rtol": 0, "atol": 0}], ids=str
)
def test_isclose(options: dict[str, float]) -> None:
    a = torch.tensor([1.0, 1.05, 2.0, torch.inf, torch.inf, torch.nan, 0.0])
    b = torch.tensor([1.0, 1.0, 2.25, torch.inf, 1.0, torch.nan, 1e-9])
    OpCase(lambda a, b: torch.isclose(a, b, **options), a, b, dtypes=(torch.float32,)).accepted()


def test_isclose_of_integers() -> None:
    OpCase(lambda a, b: torch.isclose(a, b, rtol=0.2), randint(9), randint(9).flip(0)).accepted()


def test_infinities() -> None:
    x = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan])
    OpCase(lambda x: (torch.isposinf(x), torch.isneginf(x)), x).accepted()


def test_float64_is_refused() -> None:
    OpCase(torch.eq, rand(3).double(), rand(3).double()).refused("float64", on="openvino")
