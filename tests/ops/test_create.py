"""Tensors made of numbers and sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint

X = rand(3, 5)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64), torch.zeros(())), id="zeros, ones"),
        pytest.param(lambda x: (torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(x, dtype=torch.bool)), id="like"),
        pytest.param(lambda x: (x.new_zeros(2, 3), x.new_ones(3), x.new_full((2,), 1.5)), id="new"),
        pytest.param(
            lambda x: (torch.full((2, 3), 1.5), torch.full((2,), 7), torch.full_like(x, -2), torch.full((2,), True)), id="full"
        ),
        pytest.param(
            lambda x: [torch.ops.aten.fill(y, 2.5) for y in (torch.empty(2, 3), torch.empty_like(x), x.new_empty(4))], id="empty"
        ),
        pytest.param(lambda x: (torch.arange(5), torch.arange(2, 9), torch.arange(9, 2, -3)), id="arange"),
        pytest.param(
            lambda x: (torch.arange(0, 1, 0.3), torch.arange(5.0), torch.arange(5, dtype=torch.float32)), id="arange of floats"
        ),
        pytest.param(lambda x: (torch.linspace(-1, 2, 7), torch.linspace(3, 3, 1)), id="linspace"),
        pytest.param(lambda x: (torch.eye(3), torch.eye(2, 5, dtype=torch.int64)), id="eye"),
        pytest.param(lambda x: torch.ops.aten.scalar_tensor(2.5), id="scalar_tensor"),
        pytest.param(lambda x: torch.ops.aten.fill(x, 2.5), id="fill"),
    ],
)
def test_creation(function: Callable[[Tensor], Any]) -> None:
    OpCase(lambda x: (function(x), x + 1), X, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, n: (torch.zeros(n, 2), torch.full((n,), 1.5), torch.ones_like(x), x.new_zeros(2, n)), id="shapes"),
        pytest.param(lambda x, n: torch.full((2,), n), id="full of a size"),
        pytest.param(lambda x, n: (torch.arange(n), torch.arange(1, n + 1), torch.arange(n, 2 * n)), id="arange"),
        pytest.param(lambda x, n: (torch.arange(n, dtype=torch.float32) * 2, torch.arange(n - 1, -1, -1)), id="arange, backwards"),
        pytest.param(lambda x, n: torch.arange(0, 2 * n, 2), id="arange, steps"),
        pytest.param(lambda x, n: (torch.eye(n), torch.ones(n, n).tril()), id="eye"),
        pytest.param(lambda x, n: (x.tril(), x.triu(1)), id="triangles"),
    ],
)
def test_sizes_may_be_symbolic(function: Callable[[Tensor, int], Any]) -> None:
    OpCase(lambda x: (function(x, x.shape[0]), x + 1), X, dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize("x", [rand(2, 4, 5), rand(3, 0), randint(4, 4), rand(4, 4) > 0], ids=["float", "empty", "int", "bool"])
def test_triangles(x: Tensor) -> None:
    OpCase(lambda x: (x.tril(), x.triu(), x.tril(-1), x.triu(2), x.tril(9)), x).accepted()


def test_causal_mask() -> None:
    def mask(x: Tensor) -> Tensor:
        n = x.shape[1]
        hidden = torch.full((n, n), float("-inf")).triu(1)
        return torch.softmax(x @ x.transpose(1, 2) + hidden.to(x.dtype), -1)

    OpCase(mask, rand(1, 5, 4), dtypes=(torch.float32,), dynamic=[(0, 1)]).accepted()


def test_empty_ranges() -> None:
    OpCase(lambda x: (torch.arange(0), torch.zeros(0, 3), torch.eye(0), x + 1), X, dtypes=(torch.float32,)).accepted()


def test_refusals() -> None:
    OpCase(lambda x: x + torch.zeros(3, 5, dtype=torch.float64), X).refused("float64", on="openvino")
    OpCase(lambda x: x[:, 0] + torch.arange(0.5, 3.5, dtype=torch.int64), X).refused("whole numbers")
