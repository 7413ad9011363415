"""Float32 on the GPU as PyTorch's switches said when the engine was built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from tests.backends.cuda.on_gpu.nets import FLOAT, ROUNDING, double, error, fast, made, needs_gpu, reduced, right
from torchsmith.backends.cuda import tactics

pytestmark = needs_gpu


class Net(nn.Module):
    """Layers for which PyTorch's libraries use TF32. x: (N, 64, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 1)
        self.last = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 128))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.second(self.first(x).relu()).relu().permute(0, 2, 3, 1))
        return y


def pictures() -> Tensor:
    return torch.randn(8, 64, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()


def allow(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


@pytest.fixture(params=["ours", "libraries"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = [name for name in tactics.ORDER if name not in ("cudnn", "cublas")]
    monkeypatch.setattr(tactics, "ORDER", (*rest, "cudnn", "cublas") if request.param == "ours" else ("cublas", "cudnn", *rest))


@pytest.mark.usefixtures("order")
def test_errors_are_those_of_pytorch() -> None:
    model, x = made(Net), pictures()
    wanted = double(model, x)
    for on in (True, False):
        allow(on)
        mine, eager = error(fast(model, [x], FLOAT)(x), wanted), error(reduced(model, FLOAT, x), wanted)
        assert mine <= 1.1 * eager + ROUNDING[FLOAT], f"{mine:.2e} with allow_tf32={on}, and PyTorch's own error is {eager:.2e}"


@pytest.mark.usefixtures("order")
def test_what_was_chosen_at_build_stays() -> None:
    model, x = made(Net), pictures()
    for on in (True, False):
        allow(on)
        before, after = fast(model, [x], FLOAT), fast(model, [x], FLOAT)
        wanted = before(x)
        allow(not on)
        assert torch.equal(after(x), wanted) and torch.equal(after(x), wanted) and torch.backends.cudnn.allow_tf32 is not on


@pytest.mark.usefixtures("order")
def test_it_can_be_ruled_out() -> None:
    model, x = made(Net), pictures()
    allow(True)
    module = fast(model, [x], FLOAT, disable_tf32=True)
    y = module(x)
    allow(False)
    right(y, model, x, dtype=FLOAT)
    right(module(x), model, x, dtype=FLOAT)


def test_tuning_accepts_kernels_that_round(recwarn: pytest.WarningsRecorder) -> None:
    model, x = made(Net), pictures()
    allow(True)
    options: dict[str, Any] = {"enabled_precisions": {FLOAT}, "timing_cache_path": "", "require_full_compilation": True}
    module = torchsmith.compile(model, inputs=[x], **options)
    assert not [w for w in recwarn if "bug of ours" in str(w.message)]
    wanted = double(model, x)
    assert error(module(x), wanted) <= 1.1 * error(reduced(model, FLOAT, x), wanted) + ROUNDING[FLOAT]
