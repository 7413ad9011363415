"""Concatenation: read by what follows, copied, or written in place by what gives the parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.backends.cuda.simulated import check


class Tokens(nn.Module):
    """As a vision transformer's: a class token before the patches, and position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 26, 24))
        self.patches = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(x.shape[0], -1, -1), self.patches(x)), 1) + self.positions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens(dtype: torch.dtype) -> None:
    found = check(Tokens(), torch.randn(2, 25, 8), dtype=dtype)
    assert found.kernels[-1] == "pointwise" and len(found.kernels) == 2


class Parts(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.cat((x, y, z), self.dim)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_inputs_are_copied_in_one_kernel(dim: int) -> None:
    shapes = [[3, 5, 8] for _ in range(3)]
    shapes[1][dim] = 1
    found = check(Parts(dim), *(torch.randn(s) for s in shapes))
    assert found.kernels.count("pointwise") == len(found.kernels)
