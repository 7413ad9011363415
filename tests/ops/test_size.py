"""Sizes as values."""

from __future__ import annotations

import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand


def test_a_size_is_a_number() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        n, m = x.shape
        return x * n, x / (n * m), x + (n + 1) // 2, x - n % 2

    OpCase(function, rand(4, 5), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


def test_of_two_inputs() -> None:
    OpCase(
        lambda x, y: x.sum() * y.shape[0] + x.shape[0],
        rand(4),
        rand(3),
        dtypes=(torch.float32,),
        dynamic=[(0, 0), (1, 0)],
        tie=False,
    ).accepted()
