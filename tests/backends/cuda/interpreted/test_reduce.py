"""Reductions over inner, outer and mixed dimensions, of every function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input
from torchsmith.backends.cuda.kernels.reduce import twin
from torchsmith.backends.cuda.tactics.reduce import TEMPLATE, ReduceConfig

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
FUNCTIONS: dict[str, Any] = {
    "sum": lambda x, dims, keep: x.sum(dims, keep),
    "mean": lambda x, dims, keep: x.mean(dims, keep),
    "max": torch.amax,
    "min": torch.amin,
    "norm": lambda x, dims, keep: torch.linalg.vector_norm(x, 2, dims, keep),
}


class Reduced(nn.Module):
    def __init__(self, function: str, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.function, self.dims, self.keepdim = function, dims, keepdim

    def forward(self, x: Tensor) -> Any:
        return FUNCTIONS[self.function]((x * 0.5).sigmoid() - 0.3, self.dims, self.keepdim) * 1.5


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dims", [(2,), (0,), (0, 2), (0, 1, 2), (1,)])
def test_functions(function: str, dims: tuple[int, ...]) -> None:
    keepdim = dims != (0, 2)
    assert check(Reduced(function, dims, keepdim), torch.randn(3, 5, 19), dtype=torch.float16).kernels == ["reduce"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1500), (300, 2)])
def test_dtypes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for dims in ((0,), (1,), (0, 1)):
        assert set(check(Reduced("mean", dims, True), torch.randn(shape), dtype=dtype).kernels) == {"reduce"}


class Pooled(nn.Module):
    """The mean of a channels-last picture."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 20, 1)

    def forward(self, x: Tensor) -> Any:
        return self.first(x).relu().mean((2, 3))


def test_channels_last() -> None:
    assert check(Pooled(), torch.randn(2, 4, 5, 7)).kernels[-1] != "[Reduce]"


class Whole(nn.Module):
    """Integers and bools."""

    def forward(self, x: Tensor) -> Any:
        return x.sum(1), (x > 3).any(1), (x > 0).all(0), x.amax(0), x.prod(0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integers(dtype: torch.dtype) -> None:
    found = check(Whole(), torch.randint(0, 5, (4, 37)).to(dtype))
    assert found.error == 0
    assert found.kernels.count("reduce") >= 5


@pytest.mark.parametrize("config", [ReduceConfig(4, 16, 1), ReduceConfig(2, 8, 1, 3), ReduceConfig(1, 16, 1, 5)], ids=str)
@pytest.mark.parametrize("function", ["max", "mean", "norm"])
def test_every_shape_of_block(config: ReduceConfig, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TEMPLATE), "configs", lambda self, e: [config])
    found = check(Reduced(function, (0, 2), False), torch.randn(3, 5, 19))
    assert found.kernels == ["reduce"] * min(config.splits, 2)


def test_dynamic_sizes() -> None:
    given = Input(min_shape=(1, 5, 2), opt_shape=(2, 5, 9), max_shape=(8, 5, 40))
    for dims in ((1,), (0,), (0, 1, 2)):
        found = run(graph_of(Reduced("mean", dims, False), [given]), [torch.randn(3, 5, 17)])
        assert found.error <= 1.1 * found.eager_error + 2e-4 and found.kernels == ["reduce"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_twin(function: str) -> None:
    x = torch.randn(3, 37)
    wanted = FUNCTIONS[function](x, 1, False)
    torch.testing.assert_close(twin(x, "l2" if function == "norm" else function, x.dtype), wanted)
