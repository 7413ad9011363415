"""cuDNN and cuBLASLt inside engines: right, captured into a graph, taken over without a copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.on_gpu.nets import BFLOAT, FLOAT, HALF, error, fast, made, needs_gpu, right
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.library import LibraryConvolution, LibraryLinear
from torchsmith.backends.cuda.plan import CallStep
from torchsmith.backends.cuda.tactics import cudnn
from torchsmith.runtime.compiled import CompiledModule

pytestmark = needs_gpu

LIMIT = {FLOAT: 2e-6, HALF: 2e-3, BFLOAT: 1.6e-2}


class Net(nn.Module):
    """What cuDNN and cuBLASLt fuse, and what they do not. x: (N, 16, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 1)
        self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.c, self.d = nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 1)
        self.e, self.f = nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (self.b(self.a(x).relu()) + x).relu()
        x = self.d(F.silu(self.c(x))).relu()
        y: Tensor = self.f(F.gelu(self.e(x.mean((2, 3))), approximate="tanh"))
        return y


def pictures(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, 16, 17, 15, generator=torch.Generator().manual_seed(seed)).cuda()


@pytest.fixture
def libraries_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = [name for name in tactics.ORDER if name not in ("cudnn", "cublas")]
    monkeypatch.setattr(tactics, "ORDER", ("cublas", "cudnn", *rest))


def called(module: CompiledModule) -> list[str]:
    (engine,) = module.engines
    steps = engine.runner.plan.variants[0].steps  # type: ignore[attr-defined]
    return [type(s.op).__name__ for s in steps if isinstance(s, CallStep)]


@pytest.mark.usefixtures("libraries_first")
@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("searched", [False, True])
def test_an_engine_of_libraries(dtype: torch.dtype, searched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if searched:  # as the tuner may choose
        configs = cudnn.CudnnTemplate.configs
        monkeypatch.setattr(
            cudnn.CudnnTemplate, "configs", lambda self, e: [cudnn.CudnnConfig(c.variant, True) for c in configs(self, e)[:1]]
        )
    model = made(Net)
    module = fast(model, [pictures()], dtype)
    assert called(module).count("LibraryConvolution") >= 3 and "LibraryLinear" in called(module)
    for seed in (1, 2, 3):  # the first call runs the steps, the others replay the graph
        right(module(pictures(seed=seed)), model, pictures(seed=seed), dtype=dtype)


@pytest.mark.usefixtures("libraries_first")
def test_every_size_has_its_own_choice() -> None:
    model = made(Net)
    batch = torch.export.Dim("batch", min=1, max=9)
    module = fast(model, [torchsmith.Input((batch, 16, 17, 15))])
    for size in (1, 9, 4, 1):
        right(module(pictures(size)), model, pictures(size))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT])
@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_a_fused_convolution(dtype: torch.dtype, searched: bool, residual: bool) -> None:
    op = LibraryConvolution((2, 1), (1, 0), (1, 1), 1, "relu", searched)
    x, weight, bias, more = (
        torch.randn(*shape, device="cuda", dtype=dtype) for shape in ((2, 16, 9, 7), (24, 16, 3, 1), (24,), (2, 24, 5, 7))
    )
    given = (x, weight / 7, bias, *([more.contiguous(memory_format=torch.channels_last)] * residual))
    y = op.reference(*given)
    wanted = op.reference(*(t.cpu().double() for t in given))
    assert y.is_contiguous(memory_format=torch.channels_last) and error(y.cpu(), wanted) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_a_convolution_alone_in_full_precision(dtype: torch.dtype, groups: int) -> None:
    op = LibraryConvolution((1, 1), (1, 1), (1, 1), groups)
    x, weight = (
        torch.randn(2, 16, 9, 7, device="cuda", dtype=dtype),
        torch.randn(32, 16 // groups, 3, 3, device="cuda", dtype=dtype),
    )
    assert error(op.reference(x, weight).cpu(), op.reference(x.cpu().double(), weight.cpu().double())) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("rows", [(1,), (3,), (2, 197)])
def test_a_product_with_its_activation(dtype: torch.dtype, activation: str, rows: tuple[int, ...]) -> None:
    op = LibraryLinear(activation)
    x, weight, bias = (torch.randn(*shape, device="cuda", dtype=dtype) for shape in ((*rows, 72), (40, 72), (40,)))
    y = op.reference(x, weight / 8, bias)
    assert y.is_contiguous()
    assert error(y.cpu(), op.reference(x.cpu().double(), weight.cpu().double() / 8, bias.cpu().double())) < LIMIT[dtype]
