"""Layer, RMS and group norms, with residuals, embeddings and casts in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input
from torchsmith.backends.cuda.kernels.norm import twin
from torchsmith.backends.cuda.tactics.norm import TEMPLATE
from torchsmith.backends.cuda.tactics.rows import RowConfig

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def randomised(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


class Norm(nn.Module):
    """A norm of a sum, and what follows it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = randomised(norm)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.silu(self.norm(x + y * 0.5))


class Both(nn.Module):
    """A sum that is normalised, and wanted itself."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(features), nn.Linear(features, features)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        total = x + y
        return self.linear(self.norm(total)) + total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 19), (1, 768), (7, 1), (40, 16)])
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = check(Norm(nn.LayerNorm(shape[-1])), torch.randn(shape), torch.randn(shape), dtype=dtype)
    assert found.kernels == ["norm"]


class Rms(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = randomised(nn.RMSNorm(features))

    def forward(self, x: Tensor) -> Any:
        return self.norm(x)


class Embedding(nn.Module):
    """BERT's: rows of a table, positions and token types, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.norm = nn.Embedding(50, 24), nn.Embedding(9, 24), randomised(nn.LayerNorm(24))
        self.linear = nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Any:
        return self.linear(self.norm(self.words(ids) + self.positions(torch.arange(9, device=ids.device))))


class Groups(nn.Module):
    """A group norm of what a convolution gives (channels last), or of the input itself."""

    def __init__(self, groups: int, channels: int, convolve: bool) -> None:
        super().__init__()
        self.norm = randomised(nn.GroupNorm(groups, channels))
        self.first = nn.Conv2d(channels, channels, 1) if convolve else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return F.silu(self.norm(self.first(x)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype) -> None:
    assert check(Rms(33), torch.randn(2, 5, 33), dtype=dtype).kernels == ["norm"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_that_is_wanted_itself_is_a_second_output(dtype: torch.dtype) -> None:
    found = check(Both(20), torch.randn(3, 20), torch.randn(3, 20), dtype=dtype)
    assert found.kernels[0] == "norm" and set(found.kernels[1:]) <= {"gemm", "gemv", "pointwise", "[Cast]"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    found = check(Embedding(), torch.randint(0, 50, (2, 9)), dtype=dtype)
    assert found.kernels[0] == "norm"


@pytest.mark.parametrize("convolve", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "channels"), [(1, 8), (4, 24), (6, 6)])
def test_group_norm(groups: int, channels: int, dtype: torch.dtype, convolve: bool) -> None:
    found = check(Groups(groups, channels, convolve), torch.randn(2, channels, 3, 5), dtype=dtype)
    assert found.kernels[-1] == "norm"


CONFIGS = [RowConfig(1, 64, 1), RowConfig(4, 64, 4), RowConfig(2, 128, 16), RowConfig(1, 16, 2, True), RowConfig(4, 64, 4, True)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("groups", [0, 4])
def test_every_shape_of_block(config: RowConfig, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TEMPLATE), "configs", lambda self, e: [config])
    if groups:
        found = check(Groups(groups, 8, False), torch.randn(3, 8, 3, 7) + 100.0)
    else:
        found = check(Both(37), torch.randn(5, 37), torch.randn(5, 37) + 100.0)
        check(Rms(37), torch.randn(5, 37))
    assert found.kernels[0 if not groups else -1] == ("norm_long" if config.loop else "norm")


@pytest.mark.parametrize("sizes", [(1, 3), (4, 17)])
def test_dynamic_sizes(sizes: tuple[int, int]) -> None:
    given = Input(min_shape=(1, 2, 24), opt_shape=(2, 9, 24), max_shape=(8, 40, 24))
    graph = graph_of(Norm(nn.LayerNorm(24)), [given, given])
    found = run(graph, [torch.randn(*sizes, 24), torch.randn(*sizes, 24)])
    assert found.error <= 1.1 * found.eager_error + 2e-4 and found.kernels == ["norm"]


@pytest.mark.parametrize("affine", [False, True])
def test_twin(affine: bool) -> None:
    x, weight, bias = torch.randn(3, 37), torch.randn(37), torch.randn(37)
    w, b = (weight, bias) if affine else (None, None)
    torch.testing.assert_close(twin(x, w, b, 1e-5, True, x.dtype), F.layer_norm(x, (37,), w, b), rtol=1e-5, atol=1e-5)
