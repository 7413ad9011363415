"""Images sampled at given places."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.types import type_of
from torchsmith.ops.grid_sample import MODES, PADDINGS, GridSample
from torchsmith.ops.registry import load_all
from torchsmith.testing.op_case import OpCase, rand, randint

aten = torch.ops.aten
HOW = list(itertools.product(MODES, PADDINGS, (False, True)))
TIES = ("nearest", "reflection", False)
PLACES = rand(2, 4, 6, 2, low=-1.7, high=1.7)  # some of them outside


def case(how: tuple[str, str, bool], *inputs: Tensor, **options: Any) -> OpCase:
    engines = () if how == TIES else ("openvino",)
    return OpCase(lambda x, grid: F.grid_sample(x, grid, *how), *inputs, **{"engines": engines, **options})


@pytest.mark.parametrize("how", HOW, ids=str)
def test_two_dimensions(how: tuple[str, str, bool]) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    case(how, rand(2, 3, 7, 5), PLACES, dynamic=[(0, 0), (1, 0)], dtypes=dtypes).accepted()


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 9), (64, 80)], ids=str)
def test_sizes(how: tuple[str, str, bool], size: tuple[int, int]) -> None:
    case(how, rand(2, 17, *size), PLACES, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("how", HOW, ids=str)
def test_pixels_ties_and_ends(how: tuple[str, str, bool]) -> None:
    """Places that are exact in float32, every half pixel, to a length outside."""
    size = 9 if how[2] else 8
    pixels = torch.arange(-2 * size, 4 * size) / 2
    line = pixels * 2 / (size - 1) - 1 if how[2] else (pixels * 2 + 1) / size - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    case(how, rand(1, 2, size, size), grid, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("how", [how for how in HOW if how[0] != "bicubic"], ids=str)
def test_places_that_are_no_numbers(how: tuple[str, str, bool]) -> None:
    """As PyTorch has them: outside with zeros, else at the pixel at an end."""
    grid = PLACES.clone()
    for number, place in enumerate((math.nan, math.inf, -math.inf)):
        grid[:, number, ::2, 0] = place
        grid[:, number, 1::2, 1] = place
    case(how, rand(2, 3, 7, 5), grid).accepted()


@pytest.mark.parametrize("dynamic", [[(0, 2)], [(0, 3), (1, 1)], [(0, 1), (1, 2)]], ids=str)
@pytest.mark.parametrize("how", [("bilinear", "zeros", False), ("bicubic", "border", True), ("nearest", "zeros", True)], ids=str)
def test_dynamic_sizes(how: tuple[str, str, bool], dynamic: list[tuple[int, int]]) -> None:
    case(how, rand(2, 3, 7, 5), PLACES, dynamic=dynamic, tie=False).accepted()


def test_a_grid_that_is_known_and_one_that_is_computed() -> None:
    OpCase(lambda x: F.grid_sample(x, PLACES.to(x.dtype), align_corners=False), rand(2, 3, 7, 5)).accepted()
    weight = rand(2, 3, 3, 3)

    def warped(x: Tensor) -> Tensor:
        flow = F.conv2d(x, weight.to(x.dtype), padding=1).permute(0, 2, 3, 1)
        return F.grid_sample(torch.relu(x), torch.tanh(flow), align_corners=False)

    OpCase(warped, rand(2, 3, 7, 5), dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize("how", [how for how in HOW if how[0] != "bicubic"], ids=str)
def test_three_dimensions(how: tuple[str, str, bool]) -> None:
    grid = rand(2, 3, 4, 6, 3, low=-1.7, high=1.7)
    case(how, rand(2, 3, 4, 6, 5), grid, dynamic=[(0, 0), (1, 0)], engines=()).accepted()


def test_three_dimensions_are_refused_by_openvino() -> None:
    found = case(HOW[0], rand(2, 3, 4, 6, 5), rand(2, 3, 4, 6, 3))
    found.refused(r"OpenVINO samples images of two dimensions at a grid, and here is f32\[2, 3, 4, 6, 5\]", on="openvino")


@pytest.mark.parametrize("how", [HOW[0], ("nearest", "border", True), ("bicubic", "reflection", False)], ids=str)
def test_what_a_decomposed_program_has(how: tuple[str, str, bool]) -> None:
    numbers = MODES.index(how[0]), PADDINGS.index(how[1]), how[2]
    OpCase(lambda x, grid: aten.grid_sampler_2d(x, grid, *numbers), rand(2, 3, 7, 5), PLACES).accepted()
    if how[0] != "bicubic":
        x, grid = rand(1, 2, 4, 6, 5), rand(1, 3, 4, 6, 3, low=-1.7, high=1.7)
        OpCase(lambda x, grid: aten.grid_sampler_3d(x, grid, *numbers), x, grid, engines=()).accepted()


def test_what_a_program_decomposed_on_a_gpu_has() -> None:
    with Builder() as b:
        given = [b.input(type_of(t)) for t in (rand(2, 3, 7, 5), PLACES)]
        graph = b.finish([load_all()[aten.cudnn_grid_sampler.default](*given)])
    assert [n.op for n in graph.nodes] == [GridSample("bilinear", "zeros", True)]


def test_reflected_ties_are_refused_by_openvino() -> None:
    found = case(TIES, rand(2, 3, 7, 5), PLACES)
    found.refused("OpenVINO rounds places to the nearest pixel before it reflects them, PyTorch after: ties differ", on="openvino")


def test_no_places_are_refused_by_openvino() -> None:
    case(HOW[0], rand(2, 3, 7, 5), torch.empty(2, 0, 6, 2)).refused("tensors without elements", on="openvino")


@pytest.mark.parametrize(
    ("x", "grid", "why"),
    [
        (rand(2, 3, 7, 5), PLACES.double(), "both must have one floating dtype"),
        (randint(2, 3, 7, 5), randint(2, 4, 6, 2), "both must have one floating dtype"),
        (rand(2, 3, 7, 5), PLACES[:1], r"it takes \(N, C, H, W\) and \(N, OH, OW, 2\)"),
        (rand(2, 3, 7, 5), rand(2, 4, 6, 3), r"it takes \(N, C, H, W\) and \(N, OH, OW, 2\)"),
        (rand(2, 3, 7), rand(2, 4, 1), r"it takes \(N, C, H, W\) and \(N, OH, OW, 2\)"),
        (rand(2, 3, 4, 7, 5), rand(2, 3, 4, 6, 3), "they are of two dimensions"),
    ],
    ids=["dtypes", "integers", "batches", "places", "rank", "bicubic"],
)
def test_what_cannot_be_sampled_is_refused(x: Tensor, grid: Tensor, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        GridSample("bicubic", "zeros").infer(type_of(x), type_of(grid))
