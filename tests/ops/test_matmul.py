import pytest
import torch

from torchsmith.testing.op_case import OpCase, rand, randint


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3), (3, 4)),
        ((3,), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((5, 2, 3), (3,)),
        ((3,), (5, 3, 2)),
        ((5, 2, 3), (3, 7)),
        ((2, 1, 5, 3), (4, 3, 2)),
        ((1, 1), (1, 1)),
    ],
    ids=str,
)
def test_matmul(a: tuple, b: tuple) -> None:
    OpCase(torch.matmul, rand(*a), rand(*b)).accepted()


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.mm, [(2, 3), (3, 5)]),
        (torch.bmm, [(4, 2, 3), (4, 3, 5)]),
        (torch.mv, [(2, 3), (3,)]),
        (torch.dot, [(3,), (3,)]),
        (torch.vdot, [(3,), (3,)]),
        (torch.outer, [(3,), (2,)]),
        (torch.ger, [(1,), (2,)]),
        (torch.addmm, [(5,), (2, 3), (3, 5)]),
        (torch.addmv, [(2,), (2, 3), (3,)]),
        (torch.addr, [(2, 3), (2,), (3,)]),
        (torch.baddbmm, [(4, 2, 5), (4, 2, 3), (4, 3, 5)]),
        (torch.addbmm, [(2, 5), (4, 2, 3), (4, 3, 5)]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_each_name(function, shapes: list) -> None:
    OpCase(function, *(rand(*shape) for shape in shapes)).accepted()


@pytest.mark.parametrize("name", ["addmm", "addmv", "baddbmm", "addbmm", "addr"])
def test_scales(name: str) -> None:
    shapes = {
        "addmm": [(2, 5), (2, 3), (3, 5)],
        "addmv": [(2,), (2, 3), (3,)],
        "addr": [(2, 3), (2,), (3,)],
        "baddbmm": [(4, 2, 5), (4, 2, 3), (4, 3, 5)],
        "addbmm": [(2, 5), (4, 2, 3), (4, 3, 5)],
    }[name]
    function = getattr(torch, name)
    OpCase(lambda c, a, b: function(c, a, b, beta=0.5, alpha=2), *(rand(*shape) for shape in shapes)).accepted()


def test_what_counts_for_nothing_may_be_nan() -> None:
    OpCase(lambda c, a, b: torch.addmm(c, a, b, beta=0), torch.full((2, 5), torch.nan), rand(2, 3), rand(3, 5)).accepted()


def test_sizes_that_vary() -> None:
    OpCase(torch.matmul, rand(2, 3, 4, 5), rand(2, 3, 5, 6), dynamic=[(0, 0), (1, 0)]).accepted()
    OpCase(torch.matmul, rand(2, 3, 4, 5), rand(2, 3, 5, 6), dynamic=[(0, 2), (1, 3)], tie=False).accepted()
    OpCase(torch.addmm, rand(6), rand(4, 5), rand(5, 6), dynamic=[(1, 0)]).accepted()


def test_integers_are_exact_or_refused() -> None:
    case = OpCase(torch.mm, randint(2, 3), randint(3, 4), engines=())
    case.accepted()
    case.refused(why="rounds above", on="openvino")


@pytest.mark.parametrize(("a", "b"), [((0, 3), (3, 2)), ((2, 0), (0, 3))], ids=str)
def test_no_elements(a: tuple, b: tuple) -> None:
    case = OpCase(torch.mm, rand(*a), rand(*b), engines=())
    case.accepted()
    case.refused(why="tensors without elements", on="openvino")
