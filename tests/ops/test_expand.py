"""Broadcasting and repetition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.types import TensorType
from torchsmith.ops.expand import Expand
from torchsmith.testing.op_case import OpCase, rand, randint

CASES: dict[str, Callable[[Tensor], object]] = {
    "expand": lambda x: x[:, None].expand(-1, 4, -1, -1),
    "expand in front": lambda x: x.expand(7, -1, -1, -1),
    "broadcast_to": lambda x: torch.broadcast_to(x, (3, *x.shape)),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "repeat": lambda x: x.repeat(1, 2, 3),
    "repeat in front": lambda x: x.repeat(2, 1, 1, 3),
    "tile": lambda x: x.tile(3),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "repeat_interleave flat": lambda x: x.repeat_interleave(2),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:1, :1] if isinstance(x.shape[0], int) else x[..., :1]),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, 1], x[0, :, 0], indexing="ij"),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    OpCase(CASES[name], rand(2, 3, 5), dynamic=[] if "broadcast_tensors" in name or "meshgrid" in name else [(0, 0)]).accepted()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    OpCase(lambda x: x.expand(4, 2, 3).repeat(1, 2, 1), randint(2, 3, high=2).to(dtype)).accepted()


def test_meshgrid_by_columns_is_refused() -> None:
    OpCase(lambda x, y: torch.meshgrid(x, y, indexing="xy"), rand(3), rand(4)).refused("it takes 'ij'")


def test_a_shape_that_does_not_broadcast_is_refused() -> None:
    with pytest.raises(Unsupported, match="do not broadcast"):
        Expand((4, 5)).infer(TensorType((2, 5), torch.float32))
