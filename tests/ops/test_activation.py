"""Activations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.testing.op_case import OpCase, rand, randint

aten = torch.ops.aten


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(F.gelu, id="gelu"),
        pytest.param(lambda x: F.gelu(x, approximate="tanh"), id="gelu tanh"),
        pytest.param(F.leaky_relu, id="leaky_relu"),
        pytest.param(lambda x: F.leaky_relu(x, 0.3), id="leaky_relu 0.3"),
        pytest.param(F.elu, id="elu"),
        pytest.param(lambda x: F.elu(x, 0.7), id="elu 0.7"),
        pytest.param(F.selu, id="selu"),
        pytest.param(lambda x: F.celu(x, 1.7), id="celu"),
        pytest.param(lambda x: aten.elu(x, 0.7, 1.3, 0.5), id="elu with scales"),
        pytest.param(F.softplus, id="softplus"),
        pytest.param(lambda x: F.softplus(x, 2.5), id="softplus beta"),
        pytest.param(lambda x: F.softplus(x, 1.0, 3.0), id="softplus threshold"),
        pytest.param(F.logsigmoid, id="logsigmoid"),
        pytest.param(F.softsign, id="softsign"),
        pytest.param(F.tanhshrink, id="tanhshrink"),
        pytest.param(lambda x: F.threshold(x, 0.3, 7.0), id="threshold"),
        pytest.param(F.hardshrink, id="hardshrink"),
        pytest.param(lambda x: F.hardshrink(x, 1.2), id="hardshrink 1.2"),
        pytest.param(F.softshrink, id="softshrink"),
        pytest.param(lambda x: F.softshrink(x, 1.2), id="softshrink 1.2"),
        pytest.param(lambda x: F.rrelu(x, 0.1, 0.5), id="rrelu"),
        pytest.param(lambda x: F.glu(x, 1), id="glu"),
    ],
)
def test_activation(function: Callable[[Tensor], Tensor]) -> None:
    OpCase(function, rand(3, 10, low=-4.0, high=4.0)).accepted()


def test_sizes_may_be_symbolic() -> None:
    functions = (F.gelu, F.leaky_relu, F.selu, F.softplus, F.hardshrink, F.glu)
    OpCase(lambda x: [function(x) for function in functions], rand(3, 10), dtypes=(torch.float32,), dynamic=[(0, 0)]).accepted()


@pytest.mark.parametrize("name", ["softplus", "logsigmoid"])
def test_far_from_zero_every_digit_stays(name: str) -> None:
    """OpenVINO's own SoftPlus is negative there, and its logarithm NaN."""
    x = torch.linspace(-80.0, -10.0, 17)
    function = getattr(F, name)
    OpCase(lambda x: torch.log(function(x)) if name == "softplus" else function(-x), x, dtypes=(torch.float32,)).accepted()


@pytest.mark.parametrize(
    ("x", "weights"),
    [((3, 5, 7), (5,)), ((3, 5, 7), (1,)), ((2, 1), (1,)), ((2, 3, 4, 5), (3,)), ((5,), (1,)), ((), (1,))],
    ids=str,
)
def test_prelu(x: tuple[int, ...], weights: tuple[int, ...]) -> None:
    OpCase(F.prelu, rand(*x), rand(*weights)).accepted()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 5, 7)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    OpCase(lambda x: F.elu(F.gelu(F.leaky_relu(x))), rand(*shape), dtypes=(torch.float32,)).accepted()


def test_random_slopes_are_refused() -> None:
    OpCase(lambda x: F.rrelu(x, training=True), rand(3)).refused("rrelu draws random slopes")


def test_log_sigmoid_forward() -> None:
    OpCase(lambda x: aten.log_sigmoid_forward(x)[0], rand(3, 5)).accepted()


def test_prelu_kernel() -> None:
    OpCase(lambda x, w: aten._prelu_kernel(x, w), rand(3, 5), rand(1, 5)).accepted()


def test_threshold_of_integers() -> None:
    OpCase(lambda x: F.threshold(x, 3, 1), randint(5)).accepted()


def test_float64_is_refused() -> None:
    OpCase(F.gelu, rand(3).double()).refused("float64", on="openvino")
