"""How SM memory is split: small work wants one split for all kernels, large work the cache."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.backends.cuda.simulated import SM_90, graph_of
from torchsmith.backends.cuda import carveout, plan
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.config import BuildConfig


def chosen(module: nn.Module, *shape: int) -> list[int | None]:
    graph = graph_of(module, [torch.randn(shape)])
    engine = BACKEND.build(graph, SM_90, BuildConfig(tune=False, compile_workers=1))
    return [variant.carveout for variant in plan.read(engine)[0].variants]


@pytest.mark.parametrize(("rows", "wanted"), [(4, carveout.SHARED), (65536, None)])
def test_without_a_gpu_bytes_decide(rows: int, wanted: int | None) -> None:
    assert chosen(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)), rows, 64) == [wanted]
