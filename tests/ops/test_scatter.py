"""Elements put, or added, by index."""

from __future__ import annotations

import pytest
import torch

from torchsmith.testing.op_case import OpCase, rand, randint

aten = torch.ops.aten


def places(*shape: int, dim: int, size: int) -> torch.Tensor:
    """Indices that do not repeat along `dim`."""
    return (
        torch.rand(*shape[:dim], size, *shape[dim + 1 :], generator=torch.Generator().manual_seed(3))
        .argsort(dim)
        .narrow(dim, 0, shape[dim])
    )


CASES: dict[str, OpCase] = {
    "scatter": OpCase(lambda x, i, s: x.scatter(1, i, s), rand(2, 7, 3), places(2, 5, 3, dim=1, size=7), rand(2, 5, 3)),
    "scatter of more": OpCase(lambda x, i, s: x.scatter(1, i, s), rand(2, 7, 3), places(2, 4, 2, dim=1, size=7), rand(2, 5, 3)),
    "scatter a number": OpCase(lambda x, i: x.scatter(1, i, 0.5), rand(2, 7, 3), randint(2, 5, 3, high=7)),
    "scatter_add": OpCase(lambda x, i, s: x.scatter_add(1, i, s), rand(2, 7, 3), randint(2, 5, 3, high=7), rand(2, 5, 3)),
    "scatter_reduce sum": OpCase(lambda x, i, s: x.scatter_reduce(0, i, s, "sum"), rand(7, 3), randint(5, 3, high=7), rand(5, 3)),
    "scatter_reduce amax": OpCase(lambda x, i, s: x.scatter_reduce(1, i, s, "amax"), rand(2, 7), randint(2, 5, high=7), rand(2, 5)),
    "scatter_reduce amin": OpCase(lambda x, i, s: x.scatter_reduce(1, i, s, "amin"), rand(2, 7), randint(2, 5, high=7), rand(2, 5)),
    "index_put": OpCase(lambda x, i, s: x.index_put((i,), s), rand(7, 3), torch.tensor([1, -2, 4]), rand(3, 3)),
    "index_put and add": OpCase(lambda x, i, s: x.index_put((i,), s, True), rand(7, 3), torch.tensor([1, 1, 4]), rand(3, 3)),
    "index_put a row": OpCase(lambda x, i, s: x.index_put((i,), s), rand(7, 3), torch.tensor([1, 4]), rand(3)),
    "index_put inside": OpCase(
        lambda x, i, s: aten.index_put(x, [None, i], s), rand(2, 7, 3), torch.tensor([1, 0, 4]), rand(2, 3, 3)
    ),
    "index_put pairs": OpCase(
        lambda x, i, s: aten.index_put(x, [None, i, i], s), rand(2, 4, 4, 3), torch.tensor([1, 0, 2]), rand(2, 3, 3)
    ),
    "index_put by a mask": OpCase(lambda x, m, s: aten.index_put(x, [m], s), rand(2, 7, 3), rand(2, 7) > 0, rand(1)),
    "index_copy": OpCase(lambda x, i, s: torch.index_copy(x, 1, i, s), rand(2, 7, 3), torch.tensor([1, 0, 4]), rand(2, 3, 3)),
    "index_add": OpCase(
        lambda x, i, s: torch.index_add(x, 1, i, s, alpha=2), rand(2, 7, 3), torch.tensor([1, 1, 4]), rand(2, 3, 3)
    ),
    "index_fill": OpCase(lambda x, i: torch.index_fill(x, 1, i, 0.5), rand(2, 7, 3), torch.tensor([1, 1, 4])),
    "slice_scatter": OpCase(
        lambda x, s: torch.slice_scatter(x, s, 1, 2, 5), rand(2, 7, 3), rand(2, 3, 3), dynamic=[(0, 0), (1, 0)]
    ),
    "slice_scatter by steps": OpCase(lambda x, s: torch.slice_scatter(x, s, 1, 0, 7, 3), rand(2, 7, 3), rand(2, 3, 3)),
    "slice_scatter all": OpCase(lambda x, s: torch.slice_scatter(x, s, 1) + x, rand(2, 7, 3), rand(2, 7, 3)),
    "select_scatter": OpCase(lambda x, s: torch.select_scatter(x, s, 1, -1), rand(2, 7, 3), rand(2, 3), dynamic=[(0, 0), (1, 0)]),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    CASES[name].accepted()


def test_integers() -> None:
    OpCase(lambda x, i, s: x.scatter_add(0, i, s), randint(7), randint(5, high=7), randint(5)).accepted()


REFUSED: dict[str, tuple[OpCase, str]] = {
    "mean": (
        OpCase(lambda x, i, s: x.scatter_reduce(0, i, s, "mean"), rand(7), randint(5, high=7), rand(5)),
        "sums, products and extremes",
    ),
    "without self": (
        OpCase(lambda x, i, s: x.scatter_reduce(0, i, s, "sum", include_self=False), rand(7), randint(5, high=7), rand(5)),
        "include_self=False",
    ),
    "values by a mask": (
        OpCase(lambda x, m, s: aten.index_put(x, [m], s), rand(2, 3), torch.ones(2, 3).bool(), rand(6)),
        "one for each",
    ),
    "masked_scatter": (OpCase(lambda x, m, s: x.masked_scatter(m, s), rand(2, 3), rand(2, 3) > 0, rand(6)), "depends on the data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    case, why = REFUSED[name]
    case.refused(why)
