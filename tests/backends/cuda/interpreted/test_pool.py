"""Pooling over windows, with what follows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check
from torchsmith.backends.cuda.kernels.pool import twin
from torchsmith.backends.cuda.tactics.pool import TEMPLATE, PoolConfig

CASES: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "stem": (nn.MaxPool2d(3, 2, 1), (2, 20, 9, 11)),
    "ceil": (nn.MaxPool2d(3, 2, ceil_mode=True), (1, 5, 8, 8)),
    "dilated": (nn.MaxPool2d(2, 1, dilation=2), (1, 5, 8, 8)),
    "mean": (nn.AvgPool2d(3, 2, 1), (2, 6, 9, 7)),
    "mean without padding": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 6, 9, 7)),
    "mean, ceil": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 6, 8, 8)),
    "mean by a number": (nn.AvgPool2d(2, 2, divisor_override=3), (2, 6, 8, 8)),
    "adaptive": (nn.AdaptiveAvgPool2d((3, 4)), (2, 6, 7, 9)),
    "one dimension": (nn.MaxPool1d(3, 2, 1), (2, 6, 13)),
    "three dimensions": (nn.AvgPool3d(2), (1, 6, 4, 6, 5)),
}


class Pooled(nn.Module):
    def __init__(self, pooling: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return F.relu(self.pooling(x) * scale)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pooling(case: str, dtype: torch.dtype) -> None:
    pooling, shape = CASES[case]
    scale = torch.rand(shape[1], *[1] * (len(shape) - 2))
    found = check(Pooled(pooling), torch.randn(shape), scale, dtype=dtype)
    assert "pool" in found.kernels and "[" not in "".join(found.kernels)


@pytest.mark.parametrize("config", [PoolConfig(1, 32, 1), PoolConfig(16, 8, 4), PoolConfig(64, 32, 8)])
def test_configurations(config: PoolConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TEMPLATE), "configs", lambda self, e: [config])
    check(Pooled(nn.MaxPool2d(3, 2, 1)), torch.randn(2, 20, 9, 11), torch.rand(20, 1, 1))


def test_nan_and_nothing_but_padding() -> None:
    x = torch.randn(1, 4, 6, 6)
    x[0, 1, 2, 3] = float("nan")
    x[0, 2] = float("-inf")
    pooling = nn.MaxPool2d(3, 2, 1)
    wanted = twin(x, pooling, torch.relu, torch.float32)
    (found,) = outputs(pooling, x)
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.nan_to_num(), wanted.nan_to_num())


def outputs(pooling: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    from tests.backends.cuda.simulated import SM_90, graph_of
    from torchsmith.backends.cuda import build
    from torchsmith.backends.cuda.simulate import simulate
    from torchsmith.config import BuildConfig

    graph = graph_of(Pooled(pooling), [x, torch.ones(1)], torch.float32)
    (emitted,), views, packed = build.emit(graph, SM_90, BuildConfig())
    given = dict(zip(graph.inputs, [x, torch.ones(1)], strict=True))
    return simulate(emitted.steps, given, graph.outputs, packed.tensors, views, {})
