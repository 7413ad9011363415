"""TorchScript with state and control flow, as users compile it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.errors import FullCompilationRequired, TorchsmithError
from torchsmith.runtime.hybrid import HybridScript

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated; users have it all the same


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x)))) * scale


class Stream(nn.Module):
    """Keeps state, looks at values, and has a submodule that does neither."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.h = torch.zeros(2, 4)
        self.calls = 0

    @torch.jit.export
    def reset(self) -> None:
        self.h = torch.zeros(2, 4)
        self.calls = 0

    def forward(self, x: Tensor, bias: float = 0.0) -> dict[str, Tensor]:
        y = self.encoder(x + self.h) + bias
        if bool(y.sum() > 1e9):
            y = torch.zeros_like(y)
        self.h = y
        self.calls += 1
        return {"y": y}


class Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x


@pytest.fixture
def stream() -> Any:
    torch.manual_seed(0)
    return torch.jit.script(Stream().eval())


X = torch.linspace(-1, 1, 8).reshape(2, 4)


def test_the_line_is_the_same_as_for_any_model(stream: Any) -> None:
    fast = torchsmith.compile(stream, inputs=[torchsmith.Input((2, 4))], min_block_size=1)
    assert isinstance(fast, HybridScript) and [p.path for p in fast.parts] == ["encoder"]
    assert fast.calls == 0 and stream.calls == 0, "compiling left traces in the state"
    for _ in range(3):
        torch.testing.assert_close(fast(X), stream(X))
    torch.testing.assert_close(fast(X, bias=0.5), stream(X, 0.5))
    torch.testing.assert_close(fast.h, stream.h)
    assert fast.calls == stream.calls == 4
    fast.reset(), stream.reset()
    torch.testing.assert_close(fast(X), stream(X))
    assert "Stream in TorchScript, encoder compiled, on cpu" in repr(fast)


def test_it_is_explained(stream: Any) -> None:
    explained = torchsmith.explain(torchsmith.compile(stream, inputs=[X], min_block_size=1, torch_executed_ops={"aten.relu"}))
    assert explained.summary.endswith("2 in PyTorch, the control flow of Stream in TorchScript")
    assert {s["part"] for s in explained.segments} == {"encoder"}
    *parts, rest = explained.refusals
    assert len(parts) == 2 and all(r["node"].startswith("encoder.relu") for r in parts)
    assert rest["op"] == "Stream" and rest["reason"] == "Stream reads self.h, which it changes from call to call"
    assert "test_hybrid.py" in rest["where"] and "self.encoder(x + self.h)" in rest["where"]
    assert "encoder" in str(explained) and "Stream reads self.h" in str(explained)


def test_one_with_nothing_to_compile_still_runs_and_says_so() -> None:
    fast = torchsmith.compile(torch.jit.script(Bare().eval()), inputs=[torch.ones(2)])
    torch.testing.assert_close(fast(torch.ones(2)), torch.full((2,), 2.0))
    explained = torchsmith.explain(fast)
    assert explained.summary == "no engine: Bare runs in TorchScript"
    assert explained.refusals[0]["op"] == "Bare" and "control flow" in explained.refusals[0]["reason"]


def test_full_compilation_says_what_is_in_its_way(stream: Any) -> None:
    with pytest.raises(FullCompilationRequired, match=r"only parts of this model could be compiled: Stream reads self\.h"):
        torchsmith.compile(stream, inputs=[X], require_full_compilation=True)


def test_a_copy_has_its_own_state(stream: Any) -> None:
    fast = torchsmith.compile(stream, inputs=[X], min_block_size=1)
    other = copy.deepcopy(fast)
    other(X), other(X)
    assert fast.calls == 0 and other.calls == 2
    torch.testing.assert_close(fast(X), stream(X))
    assert copy.copy(fast).script is fast.script
    assert fast.state_dict().keys() == stream.state_dict().keys()


def test_it_stays_what_it_is(stream: Any) -> None:
    fast = torchsmith.compile(stream, inputs=[X])
    assert fast.eval() is fast and fast.to("cpu") is fast and not fast.training
    for change in (fast.train, lambda: fast.to(torch.float64), lambda: pickle.dumps(fast), lambda: fast.load_state_dict({})):
        with pytest.raises(TorchsmithError, match="compile"):
            change()
