"""Padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torchsmith.testing.op_case import OpCase, rand, randint


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("sides", [(1, 2), (1, 2, 0, 3)])
def test_accepted(mode: str, sides: tuple[int, ...]) -> None:
    shape = (2, 3, 7) if len(sides) == 2 else (2, 3, 7, 5)
    OpCase(lambda x: F.pad(x, sides, mode=mode), rand(*shape), dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize("sides", [(1, 1, 2, 0, 0, 3), (1, -2, -1, 3), (-1, -1), (0, 0)])
def test_with_a_number_and_with_crops(sides: tuple[int, ...]) -> None:
    OpCase(lambda x: F.pad(x, sides, value=2.5) * 2, rand(2, 3, 7, 5), dynamic=[(0, 0)]).accepted()


def test_bool_and_integers() -> None:
    OpCase(lambda x: F.pad(x, (1, 1), value=1), randint(2, 3, high=2).bool()).accepted()
    OpCase(lambda x: F.pad(x, (1, 1), value=-3), randint(2, 3)).accepted()


def test_circular_padding_is_right_and_openvino_refuses_it() -> None:
    case = OpCase(lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"), rand(2, 3, 7, 5), engines=())
    case.accepted()
    case.refused("no circular padding", on="openvino")


def test_minus_infinity() -> None:
    OpCase(lambda x: F.pad(x, (1, 1), value=float("-inf")), rand(2, 3), dtypes=(torch.float32,)).accepted()
