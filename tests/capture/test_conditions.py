"""Conditions on sizes that torch.export cannot prove: met by all sizes, or not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from torchsmith.errors import CaptureError


def sizes(least: int, most: int) -> torchsmith.Input:
    usual = (least + most) // 2 // 8 * 8
    return torchsmith.Input(min_shape=(1, 3, least, least), opt_shape=(1, 3, usual, usual), max_shape=(1, 3, most, most))


class Halves(nn.Module):
    """Two ways to half the size, which are equal for all sizes; torch.export cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False).sum(1, keepdim=True)  # type: ignore[no-any-return]


class Even(nn.Module):
    """Takes another way for odd sizes, as MobileViT does."""

    def forward(self, x: Tensor) -> Tensor:
        height = math.ceil(x.shape[2] / 2) * 2
        if height != x.shape[2]:
            x = F.interpolate(x, size=(height, x.shape[3]), mode="bilinear")
        return x.reshape(x.shape[0], 3, height // 2, 2, x.shape[3]).sum(3)


class Smaller(nn.Module):
    """Sizes that are computed in floats."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, math.ceil(x.shape[2] / 7) * 7 - x.shape[2]))
        return F.interpolate(F.interpolate(x, scale_factor=0.5), scale_factor=1.5, mode="bilinear").relu()


def checked(model: nn.Module, given: torchsmith.Input, *shapes: tuple[int, ...]) -> Any:
    fast = torchsmith.compile(model.eval(), inputs=[given], min_block_size=1)
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x))
    return torchsmith.explain(fast)


def test_what_all_sizes_meet_is_no_obstacle() -> None:
    found = checked(Halves(), sizes(8, 64), (1, 3, 8, 8), (1, 3, 9, 33), (1, 3, 64, 63))
    assert len(found.segments) == 1 and not found.refusals


def test_what_some_sizes_do_not_meet_is_said() -> None:
    with pytest.raises(
        CaptureError, match=r"works for fewer sizes than its inputs allow; it needs .*math\.ceil.* == inputs_0_dim2"
    ):
        torchsmith.compile(Even(), inputs=[sizes(8, 64)])


def test_ranges_that_are_too_wide_to_try_are_refused() -> None:
    with pytest.raises(CaptureError, match="works for fewer sizes than its inputs allow"):
        torchsmith.compile(
            Halves(), inputs=[torchsmith.Input(min_shape=(1, 3, 8, 8), opt_shape=(1, 3, 8, 32), max_shape=(1, 3, 8, 1 << 23))]
        )


def test_sizes_in_floats_are_those_in_integers() -> None:
    found = checked(Smaller(), sizes(8, 64), (1, 3, 8, 8), (1, 3, 9, 33), (1, 3, 64, 63))
    assert len(found.segments) == 1 and not found.refusals


class Third(nn.Module):
    """A size that only floats give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x).relu(), scale_factor=0.3).sum((2, 3)).sigmoid()


def test_a_size_that_engines_do_not_know_stays_in_pytorch() -> None:
    found = checked(Third(), sizes(8, 64), (1, 3, 8, 8), (1, 3, 10, 33))
    assert found.segments and any("engines know no TruncToInt" in r["reason"] for r in found.refusals)
