"""Every family of the GEMM template's configurations, on sizes that no block divides and on some that all do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.interpreted.configs import GEMM_CONFIGS
from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input
from torchsmith.backends.cuda.tactics.gemm import TEMPLATE, GemmTemplate
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig, gemm_configs

CONFIGS = [replace(config, block_k=config.block_k // 2) for config in GEMM_CONFIGS]  # of twice the bytes an element


class Gated(nn.Module):
    """A 1×1 convolution, its activation scaled by a gate, another, and a residual."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, inner, 1), nn.Conv2d(inner, 16, 1)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x.relu()
        y: Tensor = self.second(F.silu(self.first(x)) * gate) + x
        return y


class Products(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return F.gelu(a @ b) @ c


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> GemmConfig:
    config: GemmConfig = request.param
    monkeypatch.setattr(GemmTemplate, "configs", lambda self, e: [config])
    return config


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "k", "n"), [(37, 51, 45), (64, 64, 32)])
def test_linear(only: GemmConfig, rows: int, k: int, n: int, dtype: torch.dtype) -> None:
    found = check(nn.Sequential(nn.Linear(k, n), nn.ReLU()), torch.randn(rows, k), dtype=dtype)
    wanted = ["gemm", "gemm_sum"] if only.split_k > 1 else ["gemm_persistent" if only.programs else "gemm"]
    assert found.kernels[-len(wanted) :] == wanted


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
@pytest.mark.parametrize("pixels", [(5, 7), (8, 4)])  # 32 pixels: a block of rows stays in one picture
def test_gate(only: GemmConfig, pixels: tuple[int, int]) -> None:
    found = check(Gated(40), torch.randn(2, 16, *pixels), torch.rand(2, 40, 1, 1))
    assert sum(k in ("gemm", "gemm_persistent") for k in found.kernels) == 2


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
def test_batched_products(only: GemmConfig) -> None:
    check(Products(), torch.randn(3, 21, 40), torch.randn(3, 40, 18), torch.randn(3, 18, 33))


@pytest.mark.parametrize("only", CONFIGS[:1] + CONFIGS[2:3], indirect=True, ids=str)
def test_strided_convolution(only: GemmConfig) -> None:
    found = check(nn.Sequential(nn.Conv2d(16, 24, 1), nn.Conv2d(24, 40, 1, stride=2)), torch.randn(2, 16, 6, 10))
    assert found.kernels.count("gemm") == 2


def test_pictures_as_batch() -> None:
    found = check(nn.Conv2d(8, 24, 1), torch.randn(3, 8, 5, 7))
    assert found.kernels[-1] == "gemm"


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
@pytest.mark.parametrize("sizes", [(1, 3), (4, 9)])
def test_dynamic_sizes(only: GemmConfig, sizes: tuple[int, int]) -> None:
    given = Input(min_shape=(1, 2, 24), opt_shape=(2, 9, 24), max_shape=(8, 40, 24))
    graph = graph_of(nn.Sequential(nn.Linear(24, 40), nn.GELU()), [given])
    found = run(graph, [torch.randn(*sizes, 24)])
    assert found.error <= 1.1 * found.eager_error + 2e-4


def test_configs_are_few_varied_and_fit_every_architecture() -> None:
    for m, n, k in [(197, 768, 3072), (49, 1152, 192), (6304, 3072, 768), (1, 1000, 1280), (401408, 144, 24)]:
        for item_bytes in (2, 4):
            found = gemm_configs(m, n, k, 1, item_bytes, True, False)
            assert 1 <= len(found) <= 12 and len(set(found)) == len(found)
            assert min(c.shared_bytes_of_one for c in found[:2]) * item_bytes <= 98304
    assert any(c.split_k > 1 for c in gemm_configs(197, 768, 3072, 1, 2, True, False))
    assert TEMPLATE.config_type is GemmConfig
