import pytest
import torch
from torch.nn import functional as F

from torchsmith.ir.interpret import interpret
from torchsmith.testing.op_case import OpCase, rand


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((3, 7), 1), ((7,), 1), ((2, 5, 3), 1), ((2, 5, 3), 2), ((2, 3, 5, 4), 1), ((2, 3, 5, 4), 3), ((2, 3, 2, 2, 5), 1)],
    ids=str,
)
def test_layer_norm(shape: tuple, dims: int) -> None:
    own = shape[-dims:]
    OpCase(lambda x, w, b: F.layer_norm(x, own, w, b, 1e-3), rand(*shape), rand(*own), rand(*own)).accepted()


@pytest.mark.parametrize("given", ["nothing", "weight", "bias"])
def test_parameters_may_be_missing(given: str) -> None:
    function = {
        "nothing": lambda x, p: F.layer_norm(x, (5,)),
        "weight": lambda x, p: F.layer_norm(x, (5,), p),
        "bias": lambda x, p: F.layer_norm(x, (5,), None, p),
    }[given]
    OpCase(function, rand(2, 3, 5), rand(5)).accepted()


def test_statistics_of_numbers_far_from_zero() -> None:
    OpCase(lambda x: F.layer_norm(x, (64,)), rand(3, 64) + 100, dtypes=(torch.float32,)).accepted()


def test_the_core_name_gives_statistics_too() -> None:
    OpCase(lambda x, w, b: torch.native_layer_norm(x, (5,), w, b, 1e-5), rand(2, 3, 5), rand(5), rand(5)).accepted()


def test_reduced_inputs_keep_wide_parameters() -> None:
    x, weight, bias = rand(2, 5).bfloat16(), rand(5), rand(5)
    graph = OpCase(lambda x, w, b: F.layer_norm(x, (5,), w, b), x, weight, bias).graph()
    (given,) = interpret(graph, (x, weight, bias))
    assert torch.equal(given, F.layer_norm(x, (5,), weight, bias))


def test_sizes_that_vary() -> None:
    x, w, b = rand(2, 3, 4, 5), rand(5), rand(5)
    OpCase(lambda x, w, b: F.layer_norm(x, (5,), w, b), x, w, b, dynamic=[(0, 0), (0, 1), (0, 2)], tie=False).accepted()
    OpCase(lambda x, w, b: F.layer_norm(x, (5,), w, b), x[0], w, b, dynamic=[(0, 0)]).accepted()


def test_dtypes_that_do_not_go_together_are_refused() -> None:
    OpCase(lambda x, w: F.layer_norm(x, (3,), w), rand(2, 3).double(), rand(3).double()).refused(why="float64", on="openvino")
