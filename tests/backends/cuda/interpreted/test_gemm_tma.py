"""Products through tensor descriptors, in small tiles: sizes that no block divides, every epilogue, strided rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.kernels.gemm_tma import twin
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics import gemm_tma
from torchsmith.backends.cuda.tactics.gemm_tma import GemmTmaConfig

CONFIGS = [
    GemmTmaConfig(16, 32, 16, 4, 2, programs=3, parts=1),
    GemmTmaConfig(32, 32, 16, 4, 3, programs=2, parts=2, group_m=2),
    GemmTmaConfig(16, 64, 32, 4, 2, programs=64, parts=4, flatten=False),
    GemmTmaConfig(32, 64, 16, 4, 2, programs=5, parts=2, store=True),
]


class Mlp(nn.Module):
    """As in a transformer: gelu in the first product's epilogue, the residual in the second's."""

    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(k, n), nn.Linear(n, k)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        y: Tensor = self.second(F.gelu(self.first(x))) + x
        return y


class Half(nn.Module):
    """A product of some of a tensor's columns: rows that are wider than K."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.part = nn.Linear(24, 64), nn.Linear(24, 40)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(self.whole(x)[:, 8:32])
        return y


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> GemmTmaConfig:
    config: GemmTmaConfig = request.param
    monkeypatch.setattr(gemm_tma, "LEAST_WORK", 0)
    monkeypatch.setattr(gemm_tma, "gemm_tma_configs", lambda m, n, k, dense: [replace(config, store=config.store and dense)])
    monkeypatch.setattr(tactics, "ORDER", ("gemm_tma", *tactics.ORDER))
    return config


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "k", "n"), [(37, 24, 72), (64, 64, 64)])
def test_mlp(only: GemmTmaConfig, rows: int, k: int, n: int, dtype: torch.dtype) -> None:
    found = check(Mlp(k, n), torch.randn(rows, k), dtype=dtype)
    assert found.kernels[-2:] == ["gemm_tma", "gemm_tma"]


@pytest.mark.parametrize("only", CONFIGS[:1], indirect=True, ids=str)
def test_rows_wider_than_the_product(only: GemmTmaConfig) -> None:
    found = check(Half(), torch.randn(21, 24))
    assert found.kernels.count("gemm_tma") == 2


@pytest.mark.parametrize("only", CONFIGS[:1], indirect=True, ids=str)
def test_pictures(only: GemmTmaConfig) -> None:
    """A 1×1 convolution over channels-last pictures; the first one's are not."""
    found = check(nn.Sequential(nn.Conv2d(8, 24, 1), nn.SiLU(), nn.Conv2d(24, 40, 1)), torch.randn(2, 8, 5, 7))
    assert found.kernels[-1] == "gemm_tma"


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_dynamic_rows(only: GemmTmaConfig, rows: int) -> None:
    given = Input(min_shape=(1, 24), opt_shape=(16, 24), max_shape=(64, 24))
    graph = graph_of(nn.Sequential(nn.Linear(24, 40), nn.GELU()), [given])
    found = run(graph, [torch.randn(rows, 24)])
    assert found.kernels[-1] == "gemm_tma"
    assert found.error <= 1.1 * found.eager_error + 2e-4


@pytest.mark.parametrize("only", CONFIGS[:1], indirect=True, ids=str)
def test_each_launch_has_scratch_memory_of_its_own(only: GemmTmaConfig) -> None:
    steps = [s for s in check(Mlp(24, 72), torch.randn(37, 24)).steps if isinstance(s, Launch) and s.kernel.scratch_bytes]
    memory = [s.arguments[-1] for s in steps]
    assert len(memory) == 2 == len(set(memory)) and not any(set(s.writes) & set(memory) for s in steps)


def test_twin() -> None:
    a, b = torch.randn(5, 16), torch.randn(3, 16)
    assert torch.allclose(twin(a, b, F.gelu, torch.float32), F.gelu(a @ b.T), atol=1e-6)
