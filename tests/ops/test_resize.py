"""Images at another size."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F

from torchsmith.testing.op_case import OpCase, rand

SIZES: list[dict[str, Any]] = [
    {"size": (9, 11)},
    {"size": (3, 2)},
    {"scale_factor": 2},
    {"scale_factor": 1.7},
    {"scale_factor": 0.4},
]


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("how", SIZES, ids=str)
def test_two_dimensions(mode: str, how: dict[str, Any]) -> None:
    OpCase(lambda x: F.interpolate(x, mode=mode, **how), rand(2, 3, 7, 5), dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("how", SIZES, ids=str)
def test_with_corners_aligned(mode: str, how: dict[str, Any]) -> None:
    OpCase(lambda x: F.interpolate(x, mode=mode, align_corners=True, **how), rand(2, 3, 7, 5)).accepted()


@pytest.mark.parametrize(("mode", "shape"), [("nearest", (7,)), ("linear", (7,)), ("nearest", (4, 6, 5)), ("trilinear", (4, 6, 5))])
def test_one_and_three_dimensions(mode: str, shape: tuple[int, ...]) -> None:
    OpCase(lambda x: F.interpolate(x, scale_factor=2, mode=mode), rand(2, 3, *shape)).accepted()


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_dynamic_height(mode: str) -> None:
    OpCase(lambda x: F.interpolate(x, scale_factor=2, mode=mode), rand(2, 3, 7, 5), dynamic=[(0, 2)]).accepted()


def test_antialiasing_is_refused() -> None:
    OpCase(lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True), rand(2, 3, 7, 5)).refused("no converter")
