"""Pointwise programs: every expression against its op, layouts, and every configuration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check


class Chain(nn.Module):
    def forward(self, x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
        return F.silu(x * scale + y).clamp(-1.0, 0.75) * 0.5


class Mixed(nn.Module):
    """A contiguous picture and a channels-last one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.relu(self.pool(x) + y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(7, 19), (2, 3, 5, 8), (1,), ()])
def test_chain(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    scale = torch.randn(shape[-1:])
    found = check(Chain(), torch.randn(shape), scale, torch.randn(shape), dtype=dtype)
    assert found.kernels == ["pointwise"]


@pytest.mark.parametrize("shape", [(2, 24, 20, 20), (2, 3, 5, 5), (1, 130, 9, 9)])
def test_mixed_layouts(shape: tuple[int, ...]) -> None:
    found = check(Mixed(), torch.randn(shape), torch.randn(shape))
    print(found.kernels)
