"""Other shapes of the same elements."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.types import TensorType
from torchsmith.ops.reshape import Reshape
from torchsmith.testing.op_case import OpCase, rand, randint

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(-1, 6, 5),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "reshape to a vector": lambda x: x.reshape(-1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, -1)),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "squeeze nothing": lambda x: x.squeeze(1) + 1,
    "squeeze several": lambda x: x[:, :1, :1].squeeze((1, 2)),
    "view_as": lambda x: x.view_as(x.transpose(1, 2)),
    "reshape_as": lambda x: x.reshape_as(x.transpose(1, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    OpCase(CASES[name], rand(2, 6, 5), dynamic=[(0, 0)]).accepted()


def test_two_dynamic_sizes() -> None:
    OpCase(lambda x: x.reshape(x.shape[0] * x.shape[1], 6), rand(2, 3, 6), dynamic=[(0, 0), (0, 1)], tie=False).accepted()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_other_dtypes(dtype: torch.dtype) -> None:
    OpCase(lambda x: x.reshape(3, 2), randint(2, 3, high=2).to(dtype)).accepted()


def test_an_empty_tensor() -> None:
    OpCase(lambda x: x.reshape(3, 0), torch.empty(0, 3)).accepted()


def test_another_number_of_elements_is_refused() -> None:
    with pytest.raises(Unsupported, match="another number of elements"):
        Reshape((4,)).infer(TensorType((2, 3), torch.float32))
