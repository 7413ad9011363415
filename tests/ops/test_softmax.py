import pytest
import torch
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax, F.softmin], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("shape", "dim"), [((3, 7), 1), ((2, 5, 3), 1), ((2, 5, 3), -3), ((2, 3, 1, 4), 2), ((1,), 0), ((), 0), ((0, 3), 1)]
)
def test_softmax(function, shape: tuple, dim: int) -> None:
    OpCase(lambda x: function(x, dim), rand(*shape)).accepted()


@pytest.mark.parametrize("name", ["_softmax", "_log_softmax"])
def test_core_names(name: str) -> None:
    function = getattr(torch.ops.aten, name).default
    OpCase(lambda x: function(x, -1, False), rand(2, 5)).accepted()


def test_softmax_over_channels() -> None:
    OpCase(torch.nn.Softmax2d(), rand(2, 3, 4, 5)).accepted()


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax], ids=lambda f: f.__name__)
def test_the_dtype_to_compute_in(function) -> None:
    x = rand(2, 5)
    OpCase(lambda x: function(x, 1, dtype=torch.float32), x).accepted()
    OpCase(lambda x: function(x, 1, dtype=torch.float32), torch.arange(10).reshape(2, 5)).accepted()
    OpCase(lambda x: function(x, 1, dtype=torch.float64), x).refused(why="float64", on="openvino")


def test_large_numbers_do_not_overflow() -> None:
    x = torch.tensor([[1e4, -1e4, 9999.0], [-torch.inf, 0.0, 1.0], [-3e38, -3e38, -3e38]])
    OpCase(lambda x: torch.softmax(x, 1), x, dtypes=(torch.float32,)).accepted()
    OpCase(lambda x: torch.log_softmax(x, 1), x[:1], dtypes=(torch.float32,)).accepted()


def test_sizes_that_vary() -> None:
    OpCase(lambda x: torch.softmax(x, -1), rand(2, 3, 4), dynamic=[(0, 0), (0, 2)], tie=False).accepted()
    OpCase(lambda x: torch.log_softmax(x, 1), rand(2, 3, 4), dynamic=[(0, 1)]).accepted()
