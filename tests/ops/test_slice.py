"""Slices, selections and splits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint

CASES: dict[str, Callable[[Tensor], object]] = {
    "range": lambda x: x[:, 1:4],
    "from the end": lambda x: x[:, -3:-1],
    "steps": lambda x: x[:, ::3],
    "steps in a range": lambda x: x[:, 1:6:2],
    "past the end": lambda x: x[:, 2:100],
    "nothing left": lambda x: torch.cat([x, x[:, 5:5]], 1),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "narrow from the end": lambda x: x.narrow(-1, -2, 2),
    "select": lambda x: x.select(1, 3),
    "select from the end": lambda x: x[:, -1],
    "split": lambda x: x.split(3, 1),
    "split by sizes": lambda x: x.split([1, 4, 2], 1),
    "chunk": lambda x: x.chunk(3, -1),
    "tensor_split": lambda x: x.tensor_split(3, 1),
    "unbind": lambda x: x.unbind(1),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    OpCase(CASES[name], rand(2, 7, 5), dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :-1],
        lambda x: x[:, 1:],
        lambda x: x[:, -1],
        lambda x: x[:, x.shape[1] - 1],
        lambda x: x[:, 1 : x.shape[1] - 1],
    ],
)
def test_along_a_dynamic_dimension(function: Callable[[Tensor], Tensor]) -> None:
    OpCase(function, rand(2, 7, 5), dynamic=[(0, 1)], least=4).accepted()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_other_dtypes(dtype: torch.dtype) -> None:
    OpCase(lambda x: x[:, 1:], randint(2, 3, high=2).to(dtype)).accepted()


def test_a_slice_that_depends_on_the_data_is_refused() -> None:
    OpCase(lambda x: x[x > 0] + 1, rand(5)).refused("depends on the data")
