"""Small models that the tests of the bench room name as `nets.py:function`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pair(nn.Module):
    """Two inputs, the second given by keyword; a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"wide": self.linear(x) * scale, "top": self.linear(x).argmax(-1)}


class Scaled(nn.Module):
    """Two inputs, the second given by keyword; one tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        scaled: Tensor = self.linear(x) * scale
        return scaled


def conv(batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    return net, (torch.randn(batch, 3, 8, 8),)


def pair() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    return Pair(), (torch.randn(3, 16),), {"scale": torch.rand(3, 16) + 0.5}


def scaled() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    return Scaled(), (torch.randn(3, 16),), {"scale": torch.rand(3, 16) + 0.5}


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 7, stride=16), nn.ReLU())


def number() -> int:
    return 3


def infinite(batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Identity(), (torch.full((batch, 2), float("inf")),)
