"""Where the greatest or the smallest element is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@pytest.mark.parametrize(
    "x", [rand(3, 5, 7), randint(4, 9, high=3), randint(4, 9, high=3, dtype=torch.uint8)], ids=["float", "int", "u8"]
)
def test_arg(name: str, x: Tensor) -> None:
    f = getattr(torch, name)
    OpCase(lambda x: (f(x), f(x, 0), f(x, -1, keepdim=True), f(x, dim=None, keepdim=True)), x).accepted()


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("x", [rand(3, 5), randint(4, 9, high=3), randint(2, 3, high=2).bool()], ids=["float", "int", "bool"])
def test_with_values(name: str, x: Tensor) -> None:
    f = getattr(torch, name)
    OpCase(lambda x: (tuple(f(x, 0)), tuple(f(x, -1, keepdim=True)), f(x, 1).values), x).accepted()


def test_the_first_of_equals() -> None:
    x = randint(3, 1000, high=5).float()
    OpCase(lambda x: (x.argmax(1), x.argmin(1), x.argmax(0), x.argmin(0)), x).accepted()


def test_nan_is_the_greatest_and_the_smallest() -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf])
    OpCase(lambda x: (torch.argmax(x, 0), torch.argmin(x, 0)), x, engines=()).accepted()  # not in OpenVINO


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0, 3)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: (torch.argmax(x, -1), tuple(torch.max(x, -1))), rand(*shape)).accepted()


def test_sizes_may_be_symbolic() -> None:
    OpCase(
        lambda x: (x.argmax(1), x.argmax(0), x.argmax(), x.max(1)), rand(3, 5), dtypes=(torch.float32,), dynamic=[(0, 0)]
    ).accepted()


def test_float64_is_refused() -> None:
    OpCase(torch.argmax, rand(3).double()).refused("float64", on="openvino")
