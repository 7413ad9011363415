"""Joining, rolling and shuffling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.types import TensorType
from torchsmith.ops.concat import Concat
from torchsmith.testing.op_case import OpCase, rand, randint

CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "cat": lambda x: torch.cat([x, x * 2, x[:, :, :1]], 2),
    "cat from the end": lambda x: torch.cat([x, x], -2),
    "cat one": lambda x: torch.cat([x + 1], 1),
    "cat mixed dtypes": lambda x: torch.cat([x, torch.ones_like(x, dtype=torch.int64)], 1) if False else torch.cat([x, (x > 0)], 1),
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "stack last": lambda x: torch.stack([x, x * 2], -1),
    "roll": lambda x: torch.roll(x, (1, -2), (1, 2)),
    "roll nothing": lambda x: torch.roll(x, 8, 1) + 1,
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    OpCase(CASES[name], rand(2, 8, 5), dynamic=[(0, 0)]).accepted()


def test_along_a_dynamic_dimension() -> None:
    OpCase(lambda x, y: torch.cat([x, y, x], 0), rand(3, 2), rand(4, 2), dynamic=[(0, 0), (1, 0)], tie=False).accepted()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x, 3),
        lambda x: F.channel_shuffle(x, 4),
        lambda x: torch.roll(x, 5),
    ],
)
def test_shuffles(function: Callable[[Tensor], Tensor]) -> None:
    OpCase(function, rand(2, 8, 3, 6), dynamic=[(0, 0)] if "roll" not in function.__code__.co_names else []).accepted()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    OpCase(lambda x, y: torch.cat([x, y]), randint(2, 3, high=2).to(dtype), randint(4, 3, high=2).to(dtype)).accepted()


def test_an_empty_vector_beside_higher_ranks_is_passed_over() -> None:
    OpCase(lambda x, y: torch.cat([y, x]), rand(2, 3), torch.empty(0)).accepted()


def test_a_roll_along_a_dynamic_dimension_is_refused() -> None:
    OpCase(lambda x: torch.roll(x, 1, 0), rand(4, 3), dynamic=[(0, 0)]).refused("both must be known")


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(Unsupported, match="cannot follow"):
        Concat(0).infer(TensorType((2, 3), torch.float32), TensorType((2, 4), torch.float32))
