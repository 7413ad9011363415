"""Reductions over dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint

X = rand(2, 3, 5)


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin"])
def test_over_dimensions(name: str) -> None:
    f = getattr(torch, name)
    OpCase(lambda x: (f(x, dim=1), f(x, dim=(0, -1)), f(x, dim=(2, 0), keepdim=True), f(x, dim=())), X).accepted()


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "prod"])
def test_over_all(name: str) -> None:
    f = getattr(torch, name)
    OpCase(lambda x, y: (f(x), f(y)), X, rand()).accepted()


def test_prod_and_aminmax() -> None:
    OpCase(lambda x: (x.prod(1), x.prod(-1, keepdim=True), torch.aminmax(x), torch.aminmax(x, dim=1, keepdim=True)), X).accepted()


@pytest.mark.parametrize(
    "x", [rand(3, 5) > 0, randint(3, 5, high=2), randint(3, 5, high=2, dtype=torch.uint8)], ids=["bool", "int", "u8"]
)
def test_any_and_all(x: Tensor) -> None:
    OpCase(lambda x: (x.any(), x.all(), x.any(1), x.all(0, keepdim=True)), x).accepted()
    OpCase(lambda x: (torch.any(x, dim=(0, 1)), torch.all(x, dim=(-1,)), torch.any(x, dim=())), x).accepted()


def test_any_of_floats() -> None:
    OpCase(lambda x: (x.any(), x.all(1)), torch.tensor([[0.0, 0.5], [torch.nan, 1.0]])).accepted()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_of_integers(dtype: torch.dtype) -> None:
    x = randint(3, 5, low=0 if dtype == torch.uint8 else -9, dtype=dtype)
    OpCase(
        lambda x: (x.sum(), x.sum(1), x.amax((0, 1)), x.amin(0, keepdim=True), x.max(), x.sum(0, dtype=torch.float32)), x
    ).accepted()


def test_large_integers_keep_every_digit() -> None:
    x = torch.tensor([[2**24, 2**30, 2**24 + 1], [1, 1, 2**24 + 1]])
    OpCase(lambda x: (x.sum(1), x.sum(0, keepdim=True), x.amax(1), x.amin((0, 1)), x.sum()), x).accepted()


def test_of_bools() -> None:
    x = rand(3, 5) > 0
    OpCase(lambda x: (x.sum(), x.sum(1), x.amax(1), x.amin(0), torch.count_nonzero(x), x.float().mean()), x).accepted()


def test_count_nonzero() -> None:
    OpCase(
        lambda x: (torch.count_nonzero(x), torch.count_nonzero(x, dim=1)), torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]])
    ).accepted()


def test_dtype_is_cast_before() -> None:
    OpCase(
        lambda x: (x.sum(dtype=torch.float32), x.mean(1, dtype=torch.float32), x.prod(dtype=torch.float32)), randint(3, 4, low=1)
    ).accepted()


@pytest.mark.parametrize("shape", [(1,), (1, 1), (0, 3), (3, 0), (7, 11, 13)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: (x.sum(), x.sum(0), x.sum(-1, keepdim=True)), rand(*shape)).accepted()
    OpCase(lambda x: (x.sum(), x.sum(0), x.sum(-1, keepdim=True)), randint(*shape)).accepted()


def test_sizes_may_be_symbolic() -> None:
    x, i = rand(3, 5), randint(3, 5)
    OpCase(lambda x: (x.sum(0), x.mean((0, 1)), x.amax(1)), x, dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()
    OpCase(lambda x: (x.sum(0), x.sum(1), x.amax(0), (x > 3).any(0)), i, dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize(
    ("function", "x", "why"),
    [
        pytest.param(lambda x: x.mean(0), rand(0, 3), "mean of no elements", id="empty mean"),
        pytest.param(lambda x: x.prod(), randint(3), "prod of integers", id="prod of integers"),
        pytest.param(lambda x: x.sum(), rand(3).double(), "float64", id="float64"),
    ],
)
def test_refusals(function: Callable[..., Any], x: Tensor, why: str) -> None:
    OpCase(function, x).refused(why, on="openvino")
