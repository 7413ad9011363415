"""Softmax and its logarithm along any dimension, with scales, masks and casts around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backends.cuda.simulated import check
from torchsmith.backends.cuda.kernels.softmax import twin
from torchsmith.backends.cuda.tactics.rows import RowConfig
from torchsmith.backends.cuda.tactics.softmax import TEMPLATE

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class Scores(nn.Module):
    """Scaled, masked, normalised, and scaled again."""

    def __init__(self, dim: int, log: bool) -> None:
        super().__init__()
        self.dim, self.log = dim, log

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        x = (x * 3.0).masked_fill(mask, -1e4)
        return (torch.log_softmax if self.log else torch.softmax)(x, self.dim) * 2.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("shape", "dim"), [((3, 5, 19), 2), ((3, 19, 5), 1), ((70, 3), 0), ((1, 1000), 1)])
def test_softmax(shape: tuple[int, ...], dim: int, log: bool, dtype: torch.dtype) -> None:
    mask = torch.rand(shape[1:]) < 0.3
    found = check(Scores(dim, log), torch.randn(shape), mask, dtype=dtype)
    assert found.kernels == ["softmax"]


@pytest.mark.parametrize("config", [RowConfig(2, 64, 2), RowConfig(1, 16, 1, True), RowConfig(4, 64, 4, True)], ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_every_shape_of_block(config: RowConfig, log: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TEMPLATE), "configs", lambda self, e: [config])
    found = check(Scores(1, log), torch.randn(5, 37), torch.rand(5, 37) < 0.3)
    assert found.kernels == ["softmax_long" if config.loop else "softmax"]


@pytest.mark.parametrize("log", [False, True])
def test_twin(log: bool) -> None:
    x = torch.randn(3, 37)
    torch.testing.assert_close(twin(x, log, x.dtype), (torch.log_softmax if log else torch.softmax)(x, 1))
