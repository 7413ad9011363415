"""Calibrated models against the same in floats: which is kept, what the report says, what is timed. On a GPU: `cuda/on_gpu`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.backends.openvino.backend import BACKEND
from torchsmith.errors import OutOfDeviceMemory
from torchsmith.runtime import contest
from torchsmith.runtime.compiled import CompiledModule


class Counting(nn.Module):
    """It keeps state: how often it was called."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def contested(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if floats might be faster on this CPU."""
    monkeypatch.setattr(type(BACKEND), "int8", replace(BACKEND.int8, contested=True))


def compiled(model: nn.Module | None = None, **options: Any) -> CompiledModule:
    torch.manual_seed(0)
    given: dict[str, Any] = {"enabled_precisions": {torch.float32, torch.int8}, "calibrator": [torch.randn(4, 8)], **options}
    fast = torchsmith.compile(
        (model or Counting()).eval(), inputs=[torch.randn(4, 8)], backend="openvino", min_block_size=1, **given
    )
    assert isinstance(fast, CompiledModule)
    return fast


@pytest.mark.parametrize(("times", "eight"), [((1.0, 2.0), True), ((2.0, 1.0), False), ((1.0, 1.0), False)])
def test_the_faster_is_kept(times: tuple[float, float], eight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "milliseconds", lambda modules, args, kwargs: times)
    fast = compiled()
    found = torchsmith.explain(fast)
    assert found.contest == {"eight_bits_ms": times[0], "floats_ms": times[1], "kept_eight_bits": eight}
    assert found.eight_bits == ("2 of 2 layers in int8" if eight else "none of 2 layers in 8 bits")
    assert {layer["reason"] for layer in found.layers} == ({""} if eight else {contest.REASON})
    sentence = f"timed here: {times[0]:.4g} ms a call in eight bits, {times[1]:.4g} ms in floats; "
    assert sentence + ("eight bits were kept" if eight else "floats were kept (require_eight_bits=True") in str(found)


def test_both_are_timed_and_keep_their_state() -> None:
    fast = compiled()
    timed = torchsmith.explain(fast).contest
    assert timed is not None and min(timed["eight_bits_ms"], timed["floats_ms"]) > 0
    assert float(fast.state_dict()["calls"]) == 0
    fast(torch.randn(4, 8))
    assert float(fast.state_dict()["calls"]) == 1


class Slow(nn.Module):
    device, plan = torch.device("cpu"), None

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> None:
        time.sleep(self.seconds)


def test_medians_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "written", lambda plan: ())
    slow: Any = (Slow(4e-3), Slow(2e-3))
    found = contest.milliseconds(slow, (torch.zeros(1),), {})
    assert len(found) == 2 and found[0] >= 4 and 2 <= found[1] < found[0]


def never(*_: Any) -> Any:
    raise AssertionError("there is nothing to time")


NOTHING_TO_TIME: list[dict[str, Any]] = [{"require_eight_bits": True}, {"tune": False}, {"skip_layers": {"first", "second"}}]


@pytest.mark.parametrize("options", NOTHING_TO_TIME, ids=lambda options: next(iter(options)))
@pytest.mark.filterwarnings("ignore:calibration finds no layer")
def test_no_contest(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "milliseconds", never)
    assert torchsmith.explain(compiled(**options)).contest is None


def test_trained_pairs_are_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            weight = torch.fake_quantize_per_tensor_affine(self.layer.weight, 0.01, 0, -128, 127)
            return nn.functional.linear(torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127), weight, self.layer.bias)

    monkeypatch.setattr(contest, "milliseconds", never)
    assert torchsmith.explain(compiled(Trained(), calibrator=None)).contest is None


def test_eight_bits_stay_where_there_is_no_room_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OutOfDeviceMemory("no room")

    monkeypatch.setattr(contest, "milliseconds", full)
    found = torchsmith.explain(compiled())
    assert found.contest is None and found.eight_bits == "2 of 2 layers in int8"
