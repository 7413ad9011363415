"""Limits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand, randint


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: torch.clamp(x, -1.0, 1.5), id="both"),
        pytest.param(lambda x: torch.clamp(x, min=0.5), id="min"),
        pytest.param(lambda x: torch.clamp(x, max=0.5), id="max"),
        pytest.param(lambda x: torch.clamp(x, 1, -1), id="crossed"),
        pytest.param(lambda x: torch.clip(x, -1, 1), id="clip"),
        pytest.param(lambda x: torch.clamp_min(x, 0), id="clamp_min"),
        pytest.param(lambda x: torch.clamp_max(x, 0), id="clamp_max"),
        pytest.param(F.relu6, id="relu6"),
        pytest.param(F.hardtanh, id="hardtanh"),
        pytest.param(lambda x: F.hardtanh(x, -0.5, 0.7), id="hardtanh limits"),
    ],
)
def test_clamp(function: Callable[[Tensor], Tensor]) -> None:
    OpCase(function, rand(3, 7, low=-8.0, high=8.0)).accepted()


def test_infinity_is_limited() -> None:
    x = torch.tensor([-torch.inf, -1.0, torch.inf])
    OpCase(lambda x: (torch.clamp(x, min=0.0), torch.clamp(x, max=0.0), torch.clamp(x, -3, 3)), x).accepted()


def test_of_integers() -> None:
    x = torch.tensor([2**24 + 1, -3, 7, 2**31 - 1])
    OpCase(lambda x: (torch.clamp(x, -1, 100), torch.clamp(x, min=0), torch.clamp(x, max=5), torch.clamp(x, 0.5, 4)), x).accepted()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: torch.clamp(x, -1, 1), rand(*shape)).accepted()


def test_limits_may_be_tensors() -> None:
    x, low, high = rand(3, 7), rand(7) - 0.5, rand(3, 1) + 0.5
    OpCase(
        lambda x, low, high: (torch.clamp(x, low, high), torch.clamp(x, min=low), torch.clamp(x, max=high)), x, low, high
    ).accepted()
    OpCase(lambda x, low: (torch.clamp_min(x, low), torch.clamp_max(x, low)), x, low).accepted()
    OpCase(lambda x, low: torch.clamp(x, low), randint(3, 7), low).accepted()


def test_limits_may_be_sizes() -> None:
    OpCase(
        lambda x, y: torch.clamp(y, max=x.shape[0] - 1), rand(3, 2), randint(11), dynamic=[(0, 0)], dtypes=(torch.float32,)
    ).accepted()


def test_limits_that_float32_rounds_are_refused() -> None:
    OpCase(lambda x: torch.clamp(x, 0, 2**24 + 1), randint(3)).refused("cannot tell 0 and 16777217", on="openvino")


def test_float64_is_refused() -> None:
    OpCase(lambda x: torch.clamp(x, 0, 1), rand(3).double()).refused("float64", on="openvino")
