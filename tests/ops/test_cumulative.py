"""Running totals, and differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchsmith.testing.op_case import OpCase, rand, randint


def test_cumsum() -> None:
    OpCase(lambda x: (x.cumsum(0), x.cumsum(-1), x.cumsum(1, dtype=torch.float32)), rand(3, 5, 7, low=0.0)).accepted()


def test_of_integers_and_bools() -> None:
    x, large = randint(3, 5), torch.tensor([2**24, 1, 2**30, 1])
    OpCase(
        lambda x, b, large: (x.cumsum(1), b.cumsum(0), large.cumsum(0), x.cumsum(0, dtype=torch.int32)), x, x > 4, large
    ).accepted()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 0)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: x.cumsum(-1) + 0, rand(*shape)).accepted()


def test_sizes_may_be_symbolic() -> None:
    OpCase(lambda x: (x.cumsum(0), x.cumsum(1)), rand(3, 5, low=0.0), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


def test_cumprod() -> None:
    case = OpCase(lambda x: (x.cumprod(0), x.cumprod(-1)), rand(3, 5, low=0.5), engines=())
    case.accepted()
    case.refused("no running prod", on="openvino")


def test_differences() -> None:
    def differences(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (
            x.diff(),
            x.diff(dim=0),
            x.diff(2, dim=1),
            x.diff(9) + 0,
            x.diff(prepend=y, append=x[..., :2]),
            (x > 0).diff(),
            (x > 0).diff(prepend=y > 0),
            (8 * x).long().diff(prepend=y.long()),
        )

    OpCase(differences, rand(3, 4, 5), rand(3, 4, 1)).accepted()


def test_differences_along_a_dynamic_dimension() -> None:
    OpCase(lambda x: (x.diff(), x.diff(dim=0, prepend=x[:1])), rand(6, 5), dynamic=[(0, 0)]).accepted()
    OpCase(lambda x: x.diff(dim=0), rand(6, 5), dynamic=[(0, 0)], least=4).accepted()
    OpCase(lambda x: x.diff(2, dim=0), rand(6, 5), dynamic=[(0, 0)], least=4).refused("which may be too few")
