"""Models that the tests of the command line name as `nets.py:function`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torchsmith


def conv(batch: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    return net, (torch.randn(batch, 3, 8, 8),)


class Masked(nn.Module):
    """An op that no engine takes, in the middle; a keyword input; a dictionary out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        x = torch.special.bessel_j0(torch.relu(self.first(x)))
        return {"y": torch.relu(self.second(x)) * mask + 1, "x": x}


def masked(batch: int = 2) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor]]:
    return Masked(), (torch.randn(batch, 8),), {"mask": torch.rand(batch, 8)}


def fixed() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Linear(4, 4), (torch.randn(2, 4),)


def broken() -> nn.Module:
    raise ZeroDivisionError("a mistake in the user's own function")


def slow() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Says that it has begun, then takes its time."""
    import sys
    import time

    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)
    return fixed()


def pictures() -> list[Tensor]:
    """Calibration data for `conv`."""
    return [torch.randn(1, 3, 8, 8) for _ in range(3)]


def labelled() -> list[tuple[Tensor, Tensor]]:
    """The same with labels."""
    return [(picture, torch.zeros(1)) for picture in pictures()]


def budget() -> torchsmith.AccuracyBudget:
    """For `conv`, by the labels."""

    def distance(scores: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (scores.mean(1) - batch[1]).abs().mean()

    return torchsmith.AccuracyBudget(distance, loss=10.0, greater_is_better=False)


NUMBER = 3
