"""ScriptModules with state or with control flow on values: compiled in parts, the rest as it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.capture import NotConvertible, Split, capture, split
from torchsmith.capture.fits import misfit
from torchsmith.capture.split import Part
from torchsmith.config import Config, PartitionConfig
from torchsmith.errors import FullCompilationRequired, InvalidInput
from torchsmith.inputs import Input, resolve
from torchsmith.runtime.hybrid import CompiledPart, HybridScript

WHY = NotConvertible("it keeps state")
quiet = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; users have it all the same


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: int = 1) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x)))) * scale


class Gate(nn.Module):
    """Looks at values, and has a submodule that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return self.encoder(x, 2)
        return self.same(x)


class Stream(nn.Module):
    """Keeps state from call to call; the first call is different from the others."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.gate = Encoder(), Gate()
        self.h = torch.zeros(0)
        self.calls = 0

    @torch.jit.export
    def reset(self) -> None:
        self.h = torch.zeros(0)
        self.calls = 0

    @torch.jit.export
    def bump(self, by: int) -> int:
        self.calls += by
        return self.calls

    def forward(self, x: Tensor, bias: float = 0.0) -> Tensor:
        if len(self.h) == 0:
            self.h = torch.zeros_like(x)
        y = self.encoder(x + self.h) + bias
        self.h = y
        n = self.bump(1)
        return self.gate(y) + n


@pytest.fixture
def stream() -> Any:
    torch.manual_seed(0)
    return torch.jit.script(Stream().eval())


def parts_of(split: Split, calls: list[str] | None = None) -> HybridScript:
    """The hybrid with each part run as exported, which notes its calls."""

    def run(part: Part) -> Any:
        module = part.captured.program.module()

        def call(*args: Any) -> Any:
            if reason := misfit(part.captured.program, args, {}):
                raise InvalidInput(reason)
            if calls is not None:
                calls.append(part.path)
            return module(*args)

        return call

    return HybridScript(split.script, [CompiledPart(p.path, run(p)) for p in split.parts], {})


@quiet
def test_the_largest_submodules_that_can_be_exported(stream: Any) -> None:
    inputs = resolve([Input((2, 4))])
    with pytest.raises(NotConvertible) as refused:
        capture(stream, inputs)
    found = split(stream, inputs, refused.value)
    assert [p.path for p in found.parts] == ["encoder", "gate.encoder"], "gate looks at values, its encoder does not"
    assert found.name == "Stream" and "Stream reads self.h" in str(refused.value)
    assert "test_split.py" in refused.value.where and "len(self.h)" in refused.value.where


@quiet
def test_the_hybrid_is_the_same_function_with_the_same_state(stream: Any) -> None:
    ours, calls = torch.jit.script(Stream().eval()), []
    ours.load_state_dict(stream.state_dict())
    hybrid = parts_of(split(stream, resolve([Input((2, 4))]), WHY), calls)
    assert len(stream.h) == 0 and stream.calls == 0 and hybrid.calls == 0, "finding the parts left traces in the state"
    xs = [torch.randn(2, 4) for _ in range(4)]
    for x in xs:
        torch.testing.assert_close(hybrid(x), ours(x))
    assert calls.count("encoder") == 4 and hybrid.calls == 4
    torch.testing.assert_close(hybrid.h, ours.h)
    hybrid.reset(), ours.reset()
    assert hybrid.calls == 0 and hybrid.bump(3) == 3 == ours.bump(3)
    torch.testing.assert_close(hybrid(xs[0], bias=0.5), ours(xs[0], bias=0.5))


@quiet
def test_a_call_of_other_sizes_runs_in_torchscript(stream: Any) -> None:
    calls: list[str] = []
    hybrid = parts_of(split(stream, resolve([Input((2, 4))]), WHY), calls)
    want = stream(torch.ones(3, 4))
    stream.reset()
    torch.testing.assert_close(hybrid(torch.ones(3, 4)), want)
    assert calls == []


@quiet
def test_the_modules_own_error_is_told(stream: Any) -> None:
    with pytest.raises(InvalidInput, match=r"Stream fails on these inputs.*inputs\[0\]: float32\[2, 5\]"):
        split(stream, resolve([Input((2, 5))]), WHY)


@quiet
def test_a_module_without_such_submodules_has_no_parts() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if bool(x.sum() > 0) else x

    script = torch.jit.script(Bare())
    found = split(script, resolve([Input((2,))]), WHY)
    assert found.parts == ()
    torch.testing.assert_close(HybridScript(found.script, [], {})(torch.ones(2)), torch.full((2,), 2.0))


@quiet
def test_only_a_script_module_has_parts_and_only_where_parts_will_do(stream: Any) -> None:
    with pytest.raises(NotConvertible, match="it keeps state"):
        split(nn.Sequential(stream), resolve([Input((2, 4))]), WHY)  # type: ignore[arg-type]
    full = Config(partition=PartitionConfig(require_full_compilation=True))
    with pytest.raises(FullCompilationRequired, match="only parts of this model could be compiled: it keeps state"):
        split(stream, resolve([Input((2, 4))]), WHY, full)


@quiet
def test_a_voice_detector_with_state() -> None:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("silero_vad is not installed")
    path = Path(spec.origin).parent / "data" / "silero_vad.jit"
    script, original = (torch.jit.load(str(path)).eval() for _ in range(2))
    found = split(script, resolve([Input((1, 512)), 16000]), WHY)
    assert [p.path for p in found.parts] == ["_model"], "all of the network, and none of the state around it"
    calls: list[str] = []
    hybrid = parts_of(found, calls)
    xs = [torch.randn(1, 512) * 0.1 for _ in range(5)]
    for _ in range(2):
        for x in xs:
            torch.testing.assert_close(hybrid(x, 16000), original(x, 16000))
        hybrid.reset_states(), original.reset_states()
    assert len(calls) == 8, "the first call after a reset has another state"
    torch.testing.assert_close(hybrid(xs[0][:, :256], 8000), original(xs[0][:, :256], 8000))
    with pytest.raises(torch.jit.Error, match="too short"):
        hybrid(torch.zeros(1, 100), 16000)
