"""Products of a few rows through the GEMV template, in every family of its configurations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.kernels.gemv import twin
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.tactics.gemv import TEMPLATE, GemvConfig, GemvTemplate, gemv_configs
from torchsmith.errors import Unsupported

CONFIGS = [GemvConfig(1, 1), GemvConfig(2, 4), GemvConfig(8, 1)]


class Layers(nn.Module):
    """A linear layer with its activation, and one with a residual."""

    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(k, n), nn.Linear(n, k, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(x)))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> GemvConfig:
    config: GemvConfig = request.param
    given = GemvTemplate.configs
    monkeypatch.setattr(GemvTemplate, "configs", lambda self, e: [config for _ in given(self, e)[:1]])
    return config


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
@pytest.mark.parametrize(
    ("shape", "n", "dtype"), [((1, 19), 45, torch.float32), ((4, 300), 9, torch.float16), ((1, 2, 512), 8, torch.bfloat16)]
)
def test_linear(only: GemvConfig, shape: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
    found = check(Layers(shape[-1], n), torch.randn(shape), dtype=dtype)
    assert found.kernels.count("gemv") == 2


@pytest.mark.parametrize("only", CONFIGS, indirect=True, ids=str)
def test_pictures_of_one_pixel(only: GemvConfig) -> None:
    head = nn.Sequential(nn.Conv2d(8, 40, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(40, 24, 1), nn.Hardswish(), nn.Flatten())
    found = check(nn.Sequential(head, nn.Linear(24, 10)), torch.randn(1, 8, 5, 7))
    assert found.kernels.count("gemv") == 2


def test_the_twin_is_a_linear_layer() -> None:
    a, b = torch.randn(3, 37), torch.randn(11, 37)
    torch.testing.assert_close(twin(a, b, torch.relu, torch.float32), torch.relu(F.linear(a, b)))


@pytest.mark.parametrize(("rows", "k", "why"), [(5, 16, "up to 4 are taken"), (1, 1 << 15, "a warp does not hold one")])
def test_refusals(rows: int, k: int, why: str) -> None:
    graph = fuse(graph_of(nn.Linear(k, 8), [torch.zeros(rows, k)]))
    node = graph.nodes[-1]
    with pytest.raises(Unsupported, match=why):
        TEMPLATE.configs(Emission(node, place(graph), Packed(graph.constants)))


def test_configs_are_few() -> None:
    for n, k in [(1000, 1280), (1280, 960), (8, 24), (4096, 3072)]:
        found = gemv_configs(n, k, 2)
        assert 1 <= len(found) <= 8 and len(set(found)) == len(found)
