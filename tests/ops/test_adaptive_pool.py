import pytest
import torch
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand

MEAN = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


@pytest.mark.parametrize("functions", [MEAN, MAX], ids=["mean", "max"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("output", [1, 4, 8, 3, 5, 11])
def test_adaptive_pool(functions: dict, rank: int, output: int) -> None:
    OpCase(lambda x: functions[rank](x, output), rand(2, 3, *[8] * rank)).accepted()


@pytest.mark.parametrize("functions", [MEAN, MAX], ids=["mean", "max"])
@pytest.mark.parametrize(
    ("shape", "output"), [((3, 7, 5), (2, None)), ((1, 1, 1, 1), (1, 1)), ((2, 3, 13, 11), (1, 4)), ((3, 7, 5), (1, 1))], ids=str
)
def test_odd_shapes(functions: dict, shape: tuple, output: tuple) -> None:
    OpCase(lambda x: functions[2](x, output), rand(*shape)).accepted()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("output", [1, 3, 4])
def test_indices(rank: int, output: int) -> None:
    OpCase(lambda x: MAX[rank](x, output, return_indices=True), rand(2, 3, *[8] * rank)).accepted()


@pytest.mark.parametrize("output", [1, 3])
@pytest.mark.parametrize("functions", [MEAN, MAX], ids=["mean", "max"])
def test_sizes_that_vary(functions: dict, output: int) -> None:
    OpCase(lambda x: functions[2](x, output), rand(3, 3, 6, 7), dynamic=[(0, 0), (0, 3)], tie=False, least=3).accepted()


@pytest.mark.parametrize("rank", [2, 3])
def test_core_names(rank: int) -> None:
    function = getattr(torch.ops.aten, f"_adaptive_avg_pool{rank}d").default
    OpCase(lambda x: function(x, [3] * rank), rand(2, 3, *[8] * rank)).accepted()


def test_integers_are_refused() -> None:
    x = torch.ones(1, 2, 8, 8, dtype=torch.int64)
    OpCase(lambda x: torch.ops.aten._adaptive_avg_pool2d(x, [3, 3]), x).refused(why="it takes .* of a floating dtype")
