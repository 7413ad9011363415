"""Choices, element by element."""

from __future__ import annotations

import pytest
import torch

from torchsmith.testing.op_case import OpCase, rand, randint

MASK = torch.tensor([[True, False, True], [False, False, True]])


def test_where() -> None:
    OpCase(torch.where, MASK, rand(2, 3), rand(3)).accepted()
    OpCase(lambda m, x: (torch.where(m, x, 0.0), torch.where(m, 1.0, x), torch.where(m, 1.0, 2.0)), MASK, rand(2, 3)).accepted()


def test_dtypes_are_promoted() -> None:
    OpCase(
        lambda m, x, i: (torch.where(m, x, i), torch.where(m, i, 1.5), torch.where(m, i, 3)), MASK, rand(2, 3), randint(3)
    ).accepted()
    OpCase(lambda m, b: torch.where(m, b, ~b), MASK, MASK.flip(0)).accepted()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8], ids=str)
def test_of_integers(dtype: torch.dtype) -> None:
    OpCase(lambda a, b: torch.where(a < b, a, b), randint(3, 1, dtype=dtype), randint(5, dtype=dtype)).accepted()


def test_large_integers_keep_every_digit() -> None:
    a, b = torch.tensor([[2**24 + 1], [-(2**31) + 1], [7]]), torch.tensor([2**24, 2**30 + 1, -3])
    OpCase(lambda a, b: torch.where(a < b, a, b), a, b).accepted()


def test_masked_fill() -> None:
    x, i = rand(2, 3), randint(2, 3)
    OpCase(lambda m, x, i: (x.masked_fill(m, -torch.inf), x.masked_fill(m[:, :1], 2), i.masked_fill(m, -1)), MASK, x, i).accepted()
    OpCase(lambda m, x, v: x.masked_fill(m, v), MASK, x, torch.tensor(0.5)).accepted()


def test_nan_to_num() -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    OpCase(lambda x: (x.nan_to_num(0.5, 3.0, -4.0), x.nan_to_num(nan=1.0)[:2]), x).accepted()
    OpCase(lambda x: x.nan_to_num() + 0, randint(3)).accepted()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: torch.where(x > 0, x, -x), rand(*shape)).accepted()


def test_sizes_may_be_symbolic() -> None:
    OpCase(lambda x, y: torch.where(x > 0, x, y), rand(3, 5), rand(5), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


def test_float64_is_refused() -> None:
    OpCase(torch.where, MASK, rand(2, 3).double(), rand(2, 3).double()).refused("float64", on="openvino")
