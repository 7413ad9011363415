"""What counts as right."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.bench.check import outputs_of, passes, reference, stop_if_wrong, tolerance, worst_error
from torchsmith.bench.models import Inputs
from torchsmith.bench.sides import Built
from torchsmith.errors import InvalidInput, VerificationError

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("outputs", "expected", "error"),
    [
        pytest.param([[3.0, 4.0]], [[3.0, 4.0]], 0.0, id="equal"),
        pytest.param([[3.0, 4.5]], [[3.0, 4.0]], 0.1, id="half off a norm of five"),
        pytest.param([[1.0], [1.5]], [[1.0], [1.0]], 0.5, id="the worst of two"),
        pytest.param([[1e9], [1.5]], [[1e9], [1.0]], 0.5, id="a large one hides no small one"),
        pytest.param([[0.25]], [[0.0]], 0.25, id="zero expected"),
        pytest.param([[NAN, 1.0]], [[1.0, 1.0]], INF, id="nan"),
        pytest.param([[INF]], [[1.0]], INF, id="infinity"),
        pytest.param([[1.0]], [[1.0], [1.0]], INF, id="one missing"),
        pytest.param([[1.0, 1.0]], [[1.0]], INF, id="shape"),
        pytest.param([[1]], [[1.0]], INF, id="integers for floats"),
        pytest.param([[1, 2]], [[1, 2]], 0.0, id="integers"),
    ],
)
def test_error(outputs: list[list[Any]], expected: list[list[Any]], error: float) -> None:
    found = worst_error([torch.tensor(o) for o in outputs], [torch.tensor(e) for e in expected])
    assert found == pytest.approx(error)


@pytest.mark.parametrize(
    ("error", "allowed", "right"), [(1e-6, 1e-5, True), (1e-4, 1e-5, False), (NAN, INF, False), (INF, INF, False)]
)
def test_nan_and_infinity_never_pass(error: float, allowed: float, right: bool) -> None:
    assert passes(error, allowed) is right


def test_16_bits_are_measured_by_eagers_own_error() -> None:
    assert tolerance("torchsmith", "bf16", 0.01) == pytest.approx(0.012)
    assert tolerance("openvino", "bf16", 0.01) == pytest.approx(0.02)
    assert tolerance("torchsmith", "f32", 1e-7) == 1e-5
    assert tolerance("openvino", "f32", 1e-7) == 1e-4
    assert tolerance("openvino", "f32", 1e-3) == pytest.approx(2e-3)
    assert 0.1 < tolerance("eager", "bf16", None) < 1


def test_a_wrong_output_of_ours_stops_with_a_sentence() -> None:
    stop_if_wrong("net, batch 1, f32", 1e-7, 1e-5)
    with pytest.raises(VerificationError, match=r"wrong on net, batch 1, f32.*0.5.*1e-05 is allowed; nothing was timed"):
        stop_if_wrong("net, batch 1, f32", 0.5, 1e-5)


def test_the_reference_is_a_float64_copy() -> None:
    module = nn.Linear(4, 2)
    (found,) = reference(module, Inputs((torch.randn(1, 4),)))
    assert found.dtype == torch.float64 and module.weight.dtype == torch.float32


class Constant(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("value", "sentence"), [(None, "returns no tensor"), (torch.tensor(NAN), "NaN or infinity in float64 already")]
)
def test_a_model_that_cannot_be_checked_gets_a_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        reference(Constant(value), Inputs((torch.randn(1),)))


def test_outputs_are_copied_before_a_side_writes_over_them() -> None:
    memory = torch.zeros(2)
    built = Built(lambda given: lambda: {"a": memory.add_(1), "b": None}, "")
    first, second = outputs_of(built, Inputs(())), outputs_of(built, Inputs(()))
    assert first[0].tolist() == [1, 1] and second[0].tolist() == [2, 2] and len(first) == 1
