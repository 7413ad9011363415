"""Library tactics: their choices, their pointwise launches, their layouts, with the libraries' ops in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import Simulated, check
from torchsmith.backends.cuda import tactics

Module = type[nn.Module]


@pytest.fixture(autouse=True)
def libraries_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An untimed build takes the first tactic."""
    rest = [name for name in tactics.ORDER if name not in ("cudnn", "cublas")]
    monkeypatch.setattr(tactics, "ORDER", ("cublas", "cudnn", *rest))
    yield


class Convolutions(nn.Module):
    """relu; relu of a sum; nothing; silu."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 1)  # takes what comes before it
        self.a = nn.Conv2d(8, 16, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(16, 16, (3, 1), padding=(1, 0), bias=bias)
        self.c = nn.Conv2d(16, 24, 3, stride=2, dilation=2, bias=bias)
        self.d = nn.Conv2d(24, 24, 3, padding=1, groups=2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(self.first(x)).relu()
        return F.silu(self.d(self.c((self.b(a) + a).relu())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(bias: bool, dtype: torch.dtype) -> None:
    found = check(Convolutions(bias), torch.randn(2, 8, 9, 7), dtype=dtype)
    assert found.kernels.count("[LibraryConvolution]") == 4, found.kernels
    fused = 0 if dtype == torch.float32 else 2
    assert activations(found).count("relu") == fused
    # what cuDNN cannot do is one launch a convolution: relu, sum and relu where it is f32, the bias, silu with the bias
    assert found.kernels.count("pointwise") > (2 - fused) + bias, found.kernels


def activations(found: Simulated) -> list[str]:
    return [getattr(step.op, "activation", "") for step in found.steps if hasattr(step, "op")]


@pytest.mark.parametrize("channels", [(7, 8), (8, 7)])
def test_channels_that_fill_no_vector_are_not_fused(channels: tuple[int, int]) -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(*channels, 3), nn.ReLU())
    assert "relu" not in activations(check(net, torch.randn(1, channels[0], 5, 5)))


class Products(nn.Module):
    """A linear layer alone, one before relu, one before gelu by tanh, one before gelu and a residual; a product of two inputs."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(24, 24, bias=bias) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.b(self.a(x).relu()), approximate="tanh")
        y = F.gelu(self.c(y)) + x
        return self.d(y) @ x.transpose(-1, -2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("shape", "bias"), [((2, 5, 24), True), ((3, 24), True), ((2, 5, 24), False)])
def test_products(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    found = check(Products(bias), torch.randn(shape), dtype=dtype)
    assert found.kernels.count("[LibraryLinear]") == 4 and found.kernels.count("[MatMul]") == 1, found.kernels
    expected = ["none", "none", "none", "none"] if dtype == torch.float32 else ["relu", "gelu", "none", "none"]
    assert activations(found)[:4] == expected


def test_pointwise_convolutions_are_products() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 12, 1), nn.SiLU())
    x = torch.randn(2, 8, 5, 3).contiguous(memory_format=torch.channels_last)
    found = check(net, x)
    assert activations(found) == ["relu", "none"] and found.kernels.count("pointwise") == 2, found.kernels
