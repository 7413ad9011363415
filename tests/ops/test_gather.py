"""Elements picked by index."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from torchsmith.testing.op_case import OpCase, rand, randint

CASES: dict[str, OpCase] = {
    "embedding": OpCase(lambda i, w: F.embedding(i, w), randint(2, 7), rand(10, 5), dynamic=[(0, 0)]),
    "embedding with padding": OpCase(lambda i, w: F.embedding(i, w, padding_idx=1), randint(2, 7), rand(10, 5)),
    "embedding by int32": OpCase(lambda i, w: F.embedding(i, w), randint(2, 7, dtype=torch.int32), rand(10, 5)),
    "index_select": OpCase(lambda x, i: x.index_select(1, i), rand(2, 7, 3), randint(4, high=7), dynamic=[(0, 0)]),
    "gather": OpCase(lambda x, i: x.gather(1, i), rand(2, 7, 3), randint(2, 5, 3, high=7)),
    "gather of less": OpCase(lambda x, i: x.gather(1, i), rand(2, 7, 3), randint(2, 5, 2, high=7)),
    "take_along_dim": OpCase(lambda x, i: torch.take_along_dim(x, i, 1), rand(2, 3, 4), randint(2, 5, 1, high=3)),
    "take_along_dim flat": OpCase(lambda x, i: torch.take_along_dim(x, i), rand(2, 3), randint(5, high=6)),
    "take": OpCase(lambda x, i: torch.take(x, i), rand(2, 3), torch.tensor([0, -1, 3])),
    "x[i]": OpCase(lambda x, i: x[i], rand(4, 7, 3), randint(5, high=4), dynamic=[(1, 0)]),
    "x[:, i]": OpCase(lambda x, i: x[:, i], rand(2, 7, 3), randint(5, 4, low=-7, high=7), dynamic=[(0, 0)]),
    "x[i, j]": OpCase(lambda x, i, j: x[i, j], rand(4, 7, 3), randint(5, high=4), randint(5, low=-7, high=7)),
    "x[i, :, j]": OpCase(lambda x, i, j: x[i, :, j], rand(2, 7, 3), randint(5, high=2), randint(5, high=3)),
    "x[:, i, j]": OpCase(lambda x, i, j: x[:, i, j], rand(2, 7, 3), randint(5, high=7), randint(4, 1, high=3), dynamic=[(0, 0)]),
    "flip": OpCase(lambda x: x.flip(1, -1), rand(2, 7, 3), dynamic=[(0, 0)]),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    CASES[name].accepted()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    OpCase(lambda x, i: x[:, i], randint(2, 3, high=2).to(dtype), torch.tensor([2, 0, -1])).accepted()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x[x > 0] * 2, "depends on the data"),
        (lambda x: torch.masked_select(x, x > 0) * 2, "depends on the data"),
    ],
)
def test_what_depends_on_the_data_is_refused(function: Callable[[torch.Tensor], torch.Tensor], why: str) -> None:
    OpCase(function, rand(2, 3)).refused(why)


def test_a_flip_of_a_dynamic_dimension_is_refused() -> None:
    OpCase(lambda x: x.flip(0), rand(4, 3), dynamic=[(0, 0)]).refused("symbolic size")


def test_an_index_into_nothing_is_refused() -> None:
    OpCase(lambda x, i: x[i], torch.empty(0, 3), torch.empty(0, dtype=torch.int64)).refused("there is nothing")
