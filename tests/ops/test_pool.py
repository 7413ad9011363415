import pytest
import torch
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import bind, symbol
from torchsmith.ops._spatial import windows_ceil
from torchsmith.testing.op_case import OpCase, rand, randint

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": 1},
        {"stride": 2, "dilation": 2},
        {"stride": 2, "ceil_mode": True},
        {"stride": 4, "padding": 1, "ceil_mode": True},
    ],
    ids=str,
)
def test_max_pool(rank: int, options: dict) -> None:
    OpCase(lambda x: MAX[rank](x, 3, **options), rand(2, 3, *[8] * rank)).accepted()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "ceil_mode": True}, {"stride": 2, "dilation": 2}], ids=str)
def test_max_pool_with_indices(rank: int, options: dict) -> None:
    both = OpCase(lambda x: MAX[rank](x, 3, return_indices=True, **options), rand(2, 3, *[7] * rank), engines=())
    both.accepted()
    both.refused(why="without their indices", on="openvino")
    OpCase(lambda x: MAX[rank](x, 3, return_indices=True, **options)[0], rand(2, 3, *[7] * rank)).accepted()


def test_max_pool_of_negative_numbers_and_infinities() -> None:
    x = rand(1, 2, 5, 5, low=-9.0, high=-1.0)
    x[0, 0, 0, 0], x[0, 1, 2, 2] = -torch.inf, torch.inf
    OpCase(lambda x: F.max_pool2d(x, 2, 2, 1), x[:, :, 1:]).accepted()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": 1},
        {"stride": 2, "padding": 1, "count_include_pad": False},
        {"stride": 2, "ceil_mode": True},
        {"stride": 2, "padding": 1, "ceil_mode": True},
        {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        {"stride": 4, "padding": 1, "ceil_mode": True},
    ],
    ids=str,
)
def test_avg_pool(rank: int, options: dict) -> None:
    OpCase(lambda x: MEAN[rank](x, 3, **options), rand(2, 3, *[8] * rank)).accepted()


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1, "ceil_mode": True}, {"padding": 1, "count_include_pad": False}], ids=str
)
def test_avg_pool_with_its_own_divisor(rank: int, options: dict) -> None:
    OpCase(lambda x: MEAN[rank](x, 3, divisor_override=5, **options), rand(2, 3, *[8] * rank)).accepted()


@pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [((1, 1, 1, 1), 1, 1, 0), ((3, 7, 5), (3, 2), (2, 1), (1, 1)), ((2, 3, 11, 13), (5, 7), (3, 2), (2, 3))],
    ids=str,
)
def test_odd_shapes(function, shape: tuple, kernel, stride, padding) -> None:
    OpCase(lambda x: function(x, kernel, stride, padding), rand(*shape)).accepted()


@pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d], ids=lambda f: f.__name__)
def test_sizes_that_vary(function) -> None:
    x, all_axes = rand(5, 3, 8, 9), [(0, 0), (0, 2), (0, 3)]
    OpCase(lambda x: function(x, 3, 2, 1), x, dynamic=all_axes, tie=False, least=4).accepted()
    OpCase(lambda x: function(x, 3, 2, 1, ceil_mode=True), x, dynamic=[(0, 0)], least=4).accepted()


def test_last_windows_over_sizes_that_vary() -> None:
    n = symbol("n")
    count = windows_ceil(n, 3, 2, 1, 1)
    assert [bind(count, {"n": size}) for size in (4, 5, 8, 9)] == [windows_ceil(size, 3, 2, 1, 1) for size in (4, 5, 8, 9)]
    with pytest.raises(Unsupported, match="ceil_mode with stride 3"):
        windows_ceil(n, 1, 3, 0, 1)


def test_integers() -> None:
    case = OpCase(lambda x: F.max_pool2d(x, 2), randint(1, 2, 4, 4), engines=())
    case.accepted()
    case.refused(why="rounds above", on="openvino")


def test_no_elements() -> None:
    OpCase(lambda x: F.avg_pool2d(x, 2), rand(0, 2, 4, 4)).refused(why="tensors without elements", on="openvino")
