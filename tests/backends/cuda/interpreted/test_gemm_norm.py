"""Layer norms inside the linear layers that follow them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of
from torchsmith.backends.cuda.fuse import fuse


class Block(nn.Module):
    """A pre-norm block: the norm's input is also the residual. shift: roughly each row's mean."""

    def __init__(self, k: int, n: int, shift: float) -> None:
        super().__init__()
        self.enter = nn.Linear(k, k)
        self.norm = nn.LayerNorm(k)
        self.first, self.second = nn.Linear(k, n), nn.Linear(n, k)
        nn.init.normal_(self.norm.weight, 1.0, 0.3)
        nn.init.normal_(self.norm.bias)
        nn.init.constant_(self.enter.bias, shift)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y: Tensor = self.second(F.gelu(self.first(self.norm(x))))
        return x + y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 5.0, 100.0])  # rows far from zero, where sums of squares would cancel
def test_norm_in_a_product(dtype: torch.dtype, shift: float) -> None:
    found = check(Block(64, 40, shift), torch.randn(2, 19, 64), dtype=dtype)
    assert found.kernels.count("gemm_norm") == 1 and "norm" not in found.kernels


def test_float32_keeps_its_norm() -> None:
    found = check(Block(64, 40, 5.0), torch.randn(3, 64), dtype=torch.float32)
    assert found.kernels.count("gemm_norm") == 0 and "norm" in found.kernels


def test_features_that_no_block_divides_keep_their_norm() -> None:
    found = check(Block(40, 24, 0.0), torch.randn(3, 40))
    assert found.kernels.count("gemm_norm") == 0 and "norm" in found.kernels


def test_a_norm_that_is_also_the_residual_stays_apart() -> None:
    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm(x)
            z: Tensor = self.linear(y)
            return z + y

    graph = fuse(graph_of(PostNorm(), [torch.randn(3, 32)]))
    assert "norm_gemm" not in [getattr(n.op, "kind", "") for n in graph.nodes]
    check(PostNorm(), torch.randn(3, 32))
