"""Dimensions in another order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchsmith.ir.builder import Builder
from torchsmith.ir.types import TensorType
from torchsmith.ops.permute import permuted
from torchsmith.testing.op_case import OpCase, rand, randint

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(2, 0, 1),
    "permute from the end": lambda x: x.permute(-1, 0, -2),
    "transpose": lambda x: x.transpose(0, -1),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "movedim": lambda x: x.movedim(0, -1),
    "movedim several": lambda x: x.movedim((0, 2), (1, 0)),
    "mT": lambda x: x.mT,
    "adjoint": lambda x: x.adjoint(),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    OpCase(CASES[name], rand(2, 3, 5), dynamic=[(0, 0)]).accepted()


def test_t_of_a_matrix_and_a_vector() -> None:
    OpCase(lambda x: x.t(), rand(3, 5), dynamic=[(0, 0)]).accepted()
    OpCase(lambda x: x.t() + 1, rand(3)).accepted()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
def test_other_dtypes(dtype: torch.dtype) -> None:
    OpCase(lambda x: x.transpose(0, 1), randint(2, 3, high=2).to(dtype)).accepted()


def test_the_same_order_adds_no_op() -> None:
    with Builder() as b:
        x = b.input(TensorType((2, 3), torch.float32))
        assert permuted(x, [0, -1]) is x
        with pytest.raises(AssertionError):
            permuted(x, [0, 0])
