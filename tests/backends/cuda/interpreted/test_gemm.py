"""Linear layers and 1×1 convolutions through the GEMM template."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check


class Mlp(nn.Module):
    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(k, n), nn.Linear(n, k)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(x)))


class Gated(nn.Module):
    """Two 1×1 convolutions, the second of what a gate scaled, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 24, 1), nn.Conv2d(24, 8, 1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last).relu()
        return self.second(F.silu(self.first(x)) * gate) + x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(5, 19), (2, 37, 19), (1, 5, 1, 19)])
def test_mlp(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = check(Mlp(19, 45), torch.randn(shape), dtype=dtype)
    assert found.kernels.count("gemm") == 2
