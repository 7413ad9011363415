import pytest
import torch
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2, "groups": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": "valid", "stride": 3},
    ],
    ids=str,
)
def test_convolution(rank: int, options: dict) -> None:
    x, weight, bias = rand(2, 4, *[7] * rank), rand(6, 4 // options.get("groups", 1), *[3] * rank), rand(6)
    OpCase(lambda x, w, b: CONVOLUTIONS[rank](x, w, b, **options), x, weight, bias).accepted()


@pytest.mark.parametrize(
    ("shape", "weights", "options"),
    [
        pytest.param((1, 1, 1, 1), (1, 1, 1, 1), {}, id="one"),
        pytest.param((1, 5, 11, 13), (5, 1, 3, 5), {"padding": (1, 2), "groups": 5}, id="depthwise"),
        pytest.param((1, 3, 7, 5), (9, 1, 3, 3), {"groups": 3}, id="depthwise, three filters a channel"),
        pytest.param((2, 3, 9, 8), (4, 3, 3, 2), {"stride": (2, 1), "dilation": (1, 3), "padding": (0, 2)}, id="uneven"),
        pytest.param((2, 3, 9, 8), (4, 3, 2, 4), {"padding": "same"}, id="same, of even kernels"),
        pytest.param((0, 3, 5, 5), (4, 3, 3, 3), {}, id="no batch"),
        pytest.param((3, 5, 5), (4, 3, 3, 3), {"padding": 1}, id="unbatched"),
        pytest.param((3, 5, 5), (4, 3, 2, 3), {"padding": "same"}, id="unbatched, same"),
    ],
)
def test_conv2d(shape: tuple, weights: tuple, options: dict) -> None:
    OpCase(lambda x, w: F.conv2d(x, w, None, **options), rand(*shape), rand(*weights)).accepted()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "dilation": 2, "output_padding": 2, "groups": 2},
    ],
    ids=str,
)
def test_transposed(rank: int, options: dict) -> None:
    x, weight, bias = rand(2, 4, *[5] * rank), rand(4, 6 // options.get("groups", 1), *[3] * rank), rand(6)
    if options.get("groups"):
        bias = rand(6)
    OpCase(lambda x, w, b: TRANSPOSED[rank](x, w, b, **options), x, weight, bias).accepted()


def test_transposed_unbatched() -> None:
    OpCase(lambda x, w: F.conv_transpose2d(x, w, stride=2), rand(3, 4, 5), rand(3, 2, 3, 3)).accepted()


def test_core_names() -> None:
    def function(x, w, b):
        y = torch.ops.aten.convolution(x, w, b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return torch.ops.aten._convolution(y, w, b, [2, 2], [0, 0], [1, 1], True, [1, 1], 1, False, False, False, False)

    OpCase(function, rand(1, 3, 5, 5), rand(3, 3, 3, 3), rand(3)).accepted()


@pytest.mark.parametrize("axes", [[(0, 0)], [(0, 2), (0, 3)]], ids=str)
def test_sizes_that_vary(axes: list) -> None:
    x, w = rand(4, 3, 8, 9), rand(3, 3, 3, 3)
    OpCase(lambda x, w: F.conv2d(x, w, stride=2, padding=1), x, w, dynamic=axes, tie=False, least=3).accepted()
    OpCase(lambda x, w: F.conv_transpose2d(x, w, stride=2), x, w, dynamic=axes, tie=False, least=3).accepted()


def test_weights_of_varying_shape_are_refused() -> None:
    case = OpCase(lambda x, w: F.conv2d(x, w), rand(2, 3, 8, 9), rand(4, 3, 3, 3), dynamic=[(1, 0)])
    case.refused(why="weights of symbolic shape")


def test_integers_are_refused() -> None:
    x = torch.ones(1, 2, 4, 4, dtype=torch.int64)
    OpCase(lambda x: F.conv2d(x, torch.ones(2, 2, 3, 3, dtype=torch.int64)), x).refused(why="one floating dtype")
