"""The greatest or smallest elements, in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint

# no two elements are alike, in bfloat16 neither
DISTINCT = torch.randperm(105, generator=torch.Generator().manual_seed(1)).reshape(3, 5, 7)


@pytest.mark.parametrize("x", [DISTINCT.float(), DISTINCT, DISTINCT.to(torch.uint8)], ids=["float", "int", "u8"])
def test_topk(x: Tensor) -> None:
    OpCase(lambda x: (tuple(x.topk(3)), tuple(x.topk(1, 0)), tuple(x.topk(5, 1, largest=False)), x.topk(2).indices), x).accepted()


@pytest.mark.parametrize("descending", [False, True])
def test_sort(descending: bool) -> None:
    x = DISTINCT.float()
    OpCase(lambda x: (tuple(x.sort(-1, descending)), x.argsort(0, descending), x.sort(1, descending).values), x).accepted()


def test_equals_keep_their_order() -> None:
    x = randint(3, 100, high=4).float()
    OpCase(lambda x: (tuple(torch.sort(x, stable=True)), torch.argsort(x, stable=True, descending=True)), x).accepted()
    OpCase(lambda x: tuple(torch.sort(x, stable=True)), torch.tensor([True, False, True, False])).accepted()


def test_nan_is_the_greatest() -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 0.0])  # not in OpenVINO
    OpCase(
        lambda x: (tuple(torch.sort(x, stable=True)), tuple(torch.sort(x, stable=True, descending=True))), x, engines=()
    ).accepted()


def test_msort() -> None:
    OpCase(torch.msort, DISTINCT.float()).accepted()


@pytest.mark.parametrize("shape", [(1,), (1, 1), (0, 3)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: (tuple(x.topk(1)), tuple(x.sort())), rand(*shape)).accepted()


def test_sizes_may_be_symbolic() -> None:
    x = DISTINCT[0].float()
    OpCase(
        lambda x: (tuple(x.topk(3, 1)), x.topk(2, 0).values, tuple(x.sort(1))), x, dtypes=(torch.float32,), dynamic=[(0, 0)]
    ).accepted()
    distinct = torch.tensor([3.0, 1.0, 4.0, 1.5])
    OpCase(lambda x: x.sort(0).values, distinct, dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


def test_refusals() -> None:
    OpCase(lambda x: x.topk(0), rand(3)).refused("at least one element", on="openvino")
    OpCase(lambda x: x.sort(), rand()).refused("no dimension to sort along")
    OpCase(lambda x: x.sort(), rand(3).double()).refused("float64", on="openvino")
