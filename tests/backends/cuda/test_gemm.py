"""GEMM kernels compile for every architecture, with wide loads and tensor cores, and without spilling; refusals."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.simulated import graph_of
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.steps import Kernel, Launch
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.errors import Unsupported

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")


class Residual(nn.Module):
    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.linear = nn.Linear(k, n)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z: Tensor = self.linear(x) + y
        return z


class Gated(nn.Module):
    """Squeeze-and-excite between two 1×1 convolutions."""

    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.enter, self.squeeze, self.excite, self.leave = (nn.Conv2d(*c, 1) for c in ((16, k), (k, 8), (8, k), (k, n)))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.enter(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        z: Tensor = self.leave(y * gate)
        return z


def launches(module: nn.Module, inputs: list[Any], kind: str, template: str, config: GemmConfig | None = None) -> list[Launch]:
    """The steps of the last node of that kind. config: None for the best guess."""
    graph = fuse(graph_of(module, inputs))
    node = [n for n in graph.nodes if getattr(n.op, "kind", "") == kind][-1]
    e = Emission(node, place(graph), Packed(graph.constants))
    chosen = tactics.template(template)
    chosen.emit(e, config or chosen.configs(e)[0])
    return [s for s in e.steps if isinstance(s, Launch)]


@interpreted
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch: int) -> None:
    rows = [torch.zeros(197, 1024), torch.zeros(197, 256)]
    steps = launches(Residual(1024, 256), rows, "gemm", "gemm", GemmConfig(64, 64, 64, 4, 3, split_k=4, ahead=True))
    steps += launches(Residual(1280, 1000), [torch.zeros(1, 1280), torch.zeros(1, 1000)], "gemm", "gemv")
    assert [s.kernel.function for s in steps] == ["gemm", "gemm_sum", "gemv"]
    assert all(isinstance(compile_kernel(s.kernel, arch), Cubin) for s in steps)


@interpreted
def test_wide_tiles_and_many_tiles_a_block_fit() -> None:
    big = [torch.zeros(4096, 768), torch.zeros(4096, 768)]
    for config in (GemmConfig(128, 256, 64, 8, 3), GemmConfig(128, 256, 64, 8, 3, programs=132)):
        (step,) = launches(Residual(768, 768), big, "gemm", "gemm", config)
        made = compile_kernel(step.kernel, 90)
        assert isinstance(made, Cubin), made


@interpreted
def test_a_gate_is_loaded_ahead() -> None:
    """Of 256 halves four warps load four bytes each, which is what can go to shared memory while the step before runs."""
    config = GemmConfig(32, 16, 256, 4, 3, ahead=True)
    (step,) = launches(Gated(672, 112), [torch.zeros(1, 16, 14, 14)], "gemm", "gemm", config)
    assert isinstance(step.kernel, Kernel) and dict(step.kernel.constants)["PROLOGUE"] is not None
    made = compile_kernel(step.kernel, 90)
    assert isinstance(made, Cubin), made
    assert made.shared_bytes >= 2 * (32 + 16 + 1) * 256 * 2


@interpreted
def test_compiles_for_dynamic_sizes() -> None:
    sizes = torchsmith.Input(min_shape=(1, 768), opt_shape=(128, 768), max_shape=(4096, 768))
    (step,) = launches(nn.Linear(768, 768), [sizes], "gemm", "gemm", GemmConfig(64, 64, 64, 4, 3))
    assert isinstance(compile_kernel(step.kernel, 90), Cubin)


def test_too_many_elements_are_refused() -> None:
    sizes = torchsmith.Input(min_shape=(1, 64), opt_shape=(128, 64), max_shape=(1 << 26, 64))
    with pytest.raises(Unsupported, match="offsets are 32-bit"):
        launches(nn.Linear(64, 64), [sizes], "gemm", "gemm")
