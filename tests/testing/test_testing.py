"""The testers themselves: each must fail where it should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchsmith.ops.unary import FUNCTIONS
from torchsmith.testing.compare import TOLERANCES, check_close, relative_error
from torchsmith.testing.op_case import OpCase, rand
from torchsmith.testing.pipeline import Pipeline

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("given", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 4.0], [3.0, 5.0], 1 / 34**0.5),
        ([0.0], [0.0], 0.0),
        ([NAN], [1.0], INF),
        ([1.0], [NAN], INF),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([INF], [-INF], INF),
        ([INF, 1.0], [INF, 1.0], 0.0),
        ([], [], 0.0),
        ([1.0, 1.0], [1.0], INF),
    ],
)
def test_relative_error(given: list[float], wanted: list[float], error: float) -> None:
    assert relative_error(torch.tensor(given), torch.tensor(wanted)) == pytest.approx(error)


def test_check_close_has_one_tolerance_a_dtype() -> None:
    x = torch.ones(4)
    check_close(x * (1 + TOLERANCES[torch.float32] / 2), x)
    with pytest.raises(AssertionError, match="relative error"):
        check_close(x * (1 + TOLERANCES[torch.float32] * 2), x)
    with pytest.raises(AssertionError, match=r"shape \(4,\)"):
        check_close(x, torch.ones(2, 2))
    with pytest.raises(AssertionError, match="1 tensors, the reference has 2"):
        check_close([x], [x, x])
    with pytest.raises(AssertionError, match="relative error"):
        check_close(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_an_op_case_sees_a_wrong_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "tanh", torch.sin)
    with pytest.raises(AssertionError, match="interpreter, output 0: relative error"):
        OpCase(torch.tanh, rand(2, 3)).accepted()


def test_an_op_case_sees_a_wrong_emitter(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchsmith.backends.openvino.emitters import unary

    monkeypatch.setitem(unary.FUNCTIONS, "tanh", unary.FUNCTIONS["sin"])
    with pytest.raises(AssertionError, match="openvino, output 0: relative error"):
        OpCase(torch.tanh, rand(2, 3)).accepted()


def test_an_op_case_that_should_be_refused_and_is_not() -> None:
    with pytest.raises(AssertionError, match="took it, and should refuse it"):
        OpCase(torch.tanh, rand(2, 3)).refused("no such reason")
    with pytest.raises(AssertionError, match="refused, but because of"):
        OpCase(torch.special.i0, rand(2, 3)).refused("no such reason")


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(torch.relu(x))


def test_the_pipeline_goes_down_the_road() -> None:
    road = Pipeline(Net().eval(), rand(2, 3)).capture().lower().partition().falls_back("special_i0", why="no converter")
    road.build().matches()
    with pytest.raises(AssertionError, match="stays in PyTorch"):
        road.whole()
    with pytest.raises(AssertionError, match="no refusal"):
        road.falls_back("relu", why="no converter")


def test_the_pipeline_sees_a_wrong_module() -> None:
    road = Pipeline(Net().eval(), rand(2, 3)).capture().lower().partition().build()
    road.original = nn.Tanh()
    with pytest.raises(AssertionError, match="relative error"):
        road.matches()
