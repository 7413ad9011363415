"""Convolutions, pooling, resizing and sampling beyond the plain cases: what TensorRT's layers do not have is made of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import symbol
from torchsmith.ops.adaptive_pool import AdaptiveAvgPool, AdaptiveMaxPool
from torchsmith.ops.convolution import Convolution, ConvolutionTransposed
from torchsmith.ops.grid_sample import MODES, PADDINGS, GridSample
from torchsmith.ops.pool import AvgPool, MaxPool, MaxPoolIndices
from torchsmith.ops.resize import Resize

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)

from tests.backends.tensorrt.checks import check

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOATS = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
rand = torch.randn
BATCH_AND_HEIGHT: list[Any] = [("n", 4, "m", 8)]


@FLOATS
@pytest.mark.parametrize("constants", [(1, 2), ()])
def test_convolutions_of_one_dimension(dtype: torch.dtype, constants: tuple[int, ...]) -> None:
    inputs = [t.to(dtype) for t in (rand(2, 4, 9), rand(6, 2, 3), rand(6))]
    more = [[rand(3, 4, 12).to(dtype), *inputs[1:]][: 3 - len(constants)]]
    check(Convolution((2,), ((1, 2),), (2,), 2), *inputs, constants=constants, shapes=[("n", 4, "m")], more=more)
    inputs[1] = rand(4, 3, 3).to(dtype)
    more[0][1:2] = inputs[1:2] if not constants else []
    check(ConvolutionTransposed((2,), (0,), (2,), (1,), 2), *inputs, constants=constants, shapes=[("n", 4, "m")], more=more)


@FLOATS
def test_convolutions_padded_on_one_side(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in (rand(2, 4, 9, 8), rand(6, 2, 3, 3), rand(6))]
    check(Convolution((2, 1), ((0, 1), (2, 3)), (1, 2), 2), *inputs, constants=(1, 2), shapes=BATCH_AND_HEIGHT)


@FLOATS
@pytest.mark.parametrize("constants", [(1, 2), ()])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "extra", "groups"),
    [
        ((2, 2), (1, 1), (1, 1), (1, 1), 1),
        ((2, 3), (0, 0), (1, 1), (1, 2), 2),
        ((3, 2), (1, 2), (2, 3), (2, 1), 2),
        ((1, 1), (1, 0), (1, 1), (0, 0), 1),
    ],
)
def test_transposed_convolutions(dtype: torch.dtype, constants: tuple[int, ...], stride: Any, padding: Any, dilation: Any, extra: Any, groups: int) -> None:  # fmt: skip  # noqa: E501
    inputs = [t.to(dtype) for t in (rand(2, 4, 5, 8), rand(4, 6 // groups, 3, 3), rand(6))]
    op = ConvolutionTransposed(stride, padding, dilation, extra, groups)
    check(op, *inputs, constants=constants, shapes=BATCH_AND_HEIGHT)


def test_transposed_convolutions_of_three_dimensions() -> None:
    op = ConvolutionTransposed((2, 2, 2), (0, 1, 1), (2, 2, 1), (1, 0, 0), 2)
    check(op, rand(1, 4, 5, 3, 4), rand(4, 3, 3, 3, 2), rand(6), constants=(1, 2))


@pytest.mark.parametrize("dtype", [F32, F16, BF16, torch.int8, torch.int32, torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_the_greatest_of_windows(dtype: torch.dtype, dilation: Any, ceil_mode: bool) -> None:
    x = rand(2, 4, 9, 8) * 20
    x = (x.abs() if dtype == torch.uint8 else x).to(dtype)
    check(MaxPool((3, 2), (2, 3), (1, 1), dilation, ceil_mode), x, build=dtype != F32)


@pytest.mark.parametrize(
    "x", [torch.randint(0, 3, (2, 4, 9, 8)).float(), torch.full((1, 4, 5, 8), float("-inf"))], ids=["ties", "infinities"]
)
def test_where_the_greatest_of_windows_stand(x: Tensor) -> None:
    check(MaxPoolIndices((3, 3), (2, 2), (1, 1), (1, 1), False), x, shapes=BATCH_AND_HEIGHT)
    check(MaxPoolIndices((3, 2), (2, 3), (1, 1), (1, 2), True), x)
    check(MaxPool((3, 3), (2, 2), (1, 1), (1, 1), True), x)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("divisor", [0, 5])
def test_means_of_windows(include: bool, ceil_mode: bool, divisor: int) -> None:
    check(AvgPool((3, 3), (2, 2), (1, 1), ceil_mode, include, divisor), rand(1, 4, 10, 8).half())
    others = [[rand(1, 4, 8, 9)], [rand(1, 4, 10, 9)]]
    op = AvgPool((3, 3), (2, 2), (0, 1), ceil_mode, include, divisor)
    check(op, rand(2, 4, 9, 9), shapes=[("n", 4, "m", 9)], more=others)
    check(AvgPool((4,), (3,), (2,), ceil_mode, include, 0), rand(2, 4, 9))


def test_windows_that_hang_over_sizes_that_vary() -> None:
    check(MaxPool((3, 3), (2, 2), (0, 0), (1, 1), True), rand(2, 4, 9, 8), shapes=BATCH_AND_HEIGHT, more=[[rand(1, 4, 8, 8)]])
    check(MaxPool((3,), (2,), (1,), (1,), False), rand(2, 4, 9), shapes=[("n", 4, "m")], more=[[rand(1, 4, 8)]])
    check(AvgPool((3,), (2,), (0,), True, True, 0), rand(2, 4, 9), shapes=[("n", 4, "m")], more=[[rand(1, 4, 8)]])
    check(MaxPool((3, 3, 2), (2, 2, 1), (1, 0, 1), (1, 1, 1), True), rand(1, 2, 7, 8, 9))
    with pytest.raises(Unsupported, match="where TensorRT has one window more"):
        check(AvgPool((2, 3), (3, 2), (1, 0), True, True, 0), rand(1, 4, 5, 8), shapes=[(1, 4, 5, "m")])


@FLOATS
def test_windows_of_different_sizes(dtype: torch.dtype) -> None:
    x = rand(2, 4, 8, 7).to(dtype)
    check(AdaptiveAvgPool((3, 7)), x, shapes=[("n", 4, 8, 7)], more=[[x[:1]]])
    check(AdaptiveMaxPool((3, 5)), x, shapes=[("n", 4, 8, 7)], more=[[x[:1]]])
    check(AdaptiveAvgPool((11,)), x[:, :, 0])
    check(AdaptiveAvgPool((3, 4, 5)), rand(2, 4, 8, 7, 9).to(dtype))


def test_an_infinity_stays_in_its_window() -> None:
    x = torch.arange(8.0)
    x[2] = float("inf")
    check(AdaptiveAvgPool((3,)), x[None, None])


def test_windows_of_different_sizes_must_be_known() -> None:
    with pytest.raises(Unsupported, match="adaptive pooling from m elements to 3: TensorRT's windows must be known as it builds"):
        check(AdaptiveAvgPool((3, 8)), rand(2, 4, 9, 8), shapes=BATCH_AND_HEIGHT)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear", "cubic"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scales", [None, (2.0, 2.0), (1.3, 0.7), (0.5, 3.0)], ids=str)
def test_sizes_and_factors(mode: str, align_corners: bool, scales: tuple[float, ...] | None) -> None:
    """PyTorch finds places by the factors that it is given, TensorRT by the ratio of the sizes that result."""
    size = (10, 13) if scales is None else tuple(int(a * b) for a, b in zip((5, 6), scales, strict=True))
    corners = align_corners and mode in ("linear", "cubic")
    for dtype in (F32, F16):
        x = rand(2, 3, 5, 6).to(dtype)
        check(Resize(size, mode, corners, scales), x, shapes=[("n", 3, 5, 6)], build=dtype == F16)


def test_other_sizes() -> None:
    check(Resize((9, 1), "linear", True), rand(2, 3, 5, 6))
    check(Resize((9, 1), "linear", False), rand(2, 3, 5, 6))
    check(Resize((9,), "linear"), rand(2, 3, 5))
    check(Resize((9, 4, 5), "linear"), rand(2, 3, 5, 6, 7))
    check(Resize((6, 4, 5), "linear", False, (1.3, 0.7, 0.75)), rand(2, 3, 5, 6, 7))
    double: Any = symbol("m") * 2
    for mode in ("linear", "nearest"):
        check(Resize((double, 12), mode, False, (2.0, 2.0)), rand(2, 3, 5, 6), shapes=[("n", 3, "m", 6)], more=[[rand(1, 3, 7, 6)]])
    with pytest.raises(Unsupported, match=r"a resize of m elements by 1.5, where TensorRT finds places by the ratio of sizes"):
        check(Resize((double, 12), "linear", False, (1.5, 2.0)), rand(2, 3, 5, 6), shapes=[("n", 3, "m", 6)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_samples_at_a_grid(mode: str, padding: str, align_corners: bool) -> None:
    """The layer computes in float32, whatever the type is."""
    op = GridSample(mode, padding, align_corners)
    for dtype in (F32, F16, BF16):
        x, grid = rand(2, 3, 5, 6).to(dtype), rand(2, 4, 7, 2).to(dtype)
        more = [[rand(1, 3, 5, 6).to(dtype), rand(1, 9, 7, 2).to(dtype)]]
        check(op, x, grid, shapes=[("n", 3, 5, 6), ("n", "m", 7, 2)], more=more, build=dtype == F16)
    check(op, rand(1, 3, 1, 6), rand(1, 1, 1, 2), constants=(1,), build=False)


def test_samples_of_volumes_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"TensorRT samples images of two dimensions at a grid, and here is f32\[2, 3, 4, 5, 6\]"):
        check(GridSample("bilinear", "zeros"), rand(2, 3, 4, 5, 6), rand(2, 4, 7, 5, 3))
