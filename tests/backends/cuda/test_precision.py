"""PyTorch's switches for TF32 decide what kernels and library calls do with float32, once, when an engine is built."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.problems import layers, placed
from tests.backends.cuda.simulated import SM_90, graph_of
from torchsmith.backends.cuda import build
from torchsmith.backends.cuda.accuracy import references
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.plan import CallStep, read
from torchsmith.backends.cuda.precision import Tf32, running
from torchsmith.backends.cuda.signature import signature
from torchsmith.backends.cuda.steps import Call, Launch
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph
from torchsmith.ops.linear import Linear

MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
EVERYWHERE = Tf32(True, True, True)
compiles = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")


@pytest.fixture(autouse=True)
def usual_switches() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    MATMUL.fp32_precision = "none"


class Net(nn.Module):
    """x: (N, 3, 16, 16) -> (N, 4, 8): a first convolution, one of 3×3, one of 1×1, attention, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 32, 1)
        self.last = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).flatten(2).transpose(1, 2)
        y: Tensor = self.last(F.scaled_dot_product_attention(x, x, x))
        return y


@functools.cache
def net(dtype: torch.dtype) -> Graph:
    return graph_of(Net(), [torch.zeros(4, 3, 16, 16)], dtype)


def precisions(dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, str]:
    """What each kernel with products is compiled for."""
    (emitted,), _, _ = build.emit(net(dtype), SM_90, BuildConfig(**options))
    kernels = [(s.kernel.function, dict(s.kernel.constants)) for s in emitted.steps if isinstance(s, Launch)]
    found = [(name, constants["PRECISION"]) for name, constants in kernels if "PRECISION" in constants]
    return {f"{index} {name}": precision for index, (name, precision) in enumerate(found)}


def test_convolutions_round_by_default_and_products_do_not() -> None:
    assert Tf32.allowed() == Tf32(matmul=False, conv=True, rnn=True)
    assert precisions() == {"0 stem": "tf32", "1 convolution": "tf32", "2 gemm": "tf32", "3 attention": "ieee", "4 gemm": "ieee"}


@pytest.mark.parametrize("how", ["allow_tf32", "set_float32_matmul_precision", "fp32_precision", "all"])
def test_every_way_to_allow_it_is_seen(how: str) -> None:
    net(torch.float32)  # torch.export reads allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    if how == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif how == "set_float32_matmul_precision":
        torch.set_float32_matmul_precision("high")
    elif how == "fp32_precision":
        MATMUL.fp32_precision = "tf32"  # after which PyTorch refuses to say what allow_tf32 is
    else:
        CONV.fp32_precision = "ieee"
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    assert Tf32.allowed().matmul and not Tf32.allowed().conv
    found = precisions()
    assert found.pop("4 gemm") == "tf32" and found.pop("3 attention") == "tf32x3" and set(found.values()) == {"ieee"}


def test_it_can_be_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    assert set(precisions().values()) == {"tf32", "tf32x3"}
    assert set(precisions(disable_tf32=True).values()) == {"ieee"}
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert set(precisions().values()) == {"ieee"}


def test_halves_do_not_ask() -> None:
    before = precisions(torch.float16)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert precisions(torch.float16) == before and set(before.values()) == {"ieee"}


def signed(graph: Graph, tf32: Tf32 | None = None) -> list[str]:
    graph = fuse(graph)
    views, packed = placed(graph)
    return [signature(n, views, packed.tensors.get, {}, tf32) for n in graph.nodes]


def test_timings_are_told_apart_where_it_matters() -> None:
    assert signed(layers(dtype=torch.float32)) != signed(layers(dtype=torch.float32), Tf32(matmul=True))
    assert signed(layers(dtype=torch.float32)) == signed(layers(dtype=torch.float32), Tf32(conv=True, rnn=True))
    assert signed(layers(dtype=torch.float16)) == signed(layers(dtype=torch.float16), EVERYWHERE)


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("on", [False, True])
def test_switches_are_put_back(before: str, on: bool) -> None:
    MATMUL.fp32_precision = before
    with running(Linear(), on):
        assert (MATMUL.fp32_precision == "tf32") == on and CONV.fp32_precision == "tf32"
    assert MATMUL.fp32_precision == before
    with pytest.raises(ZeroDivisionError), Tf32().applied():
        assert MATMUL.fp32_precision != "tf32" and CONV.fp32_precision != "tf32"
        raise ZeroDivisionError
    assert MATMUL.fp32_precision == before and CONV.fp32_precision == "tf32"
    with running(Linear(), None):
        assert MATMUL.fp32_precision == before
    assert torch.backends.cudnn.allow_tf32


def test_what_is_inherited_stays_so() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with running(Linear(), False):
        assert MATMUL.fp32_precision == "ieee"
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    assert MATMUL.fp32_precision == "ieee"


def test_threads_that_want_it_otherwise_take_turns() -> None:
    wrong = []

    def work(on: bool) -> None:
        for _ in range(200):
            with running(Linear(), on):
                wrong.extend([on] * ((MATMUL.fp32_precision == "tf32") != on))

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and MATMUL.fp32_precision == "none"


def test_what_pytorch_runs_keeps_what_was_chosen() -> None:
    """A convolution in three dimensions has no kernel of ours."""
    graph = graph_of(nn.Conv3d(3, 4, 3), [torch.zeros(1, 3, 5, 5, 5)], torch.float32)
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        (emitted,), _, _ = build.emit(graph, SM_90, BuildConfig())
        assert [s.tf32 for s in emitted.steps if isinstance(s, Call)] == [allowed]
        plan, _ = read(BACKEND.build(graph, SM_90, BuildConfig(tune=False)))
        assert [s.tf32 for s in plan.variants[0].steps if isinstance(s, CallStep)] == [allowed]


def test_the_gate_compares_with_what_pytorch_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def reference(self: Linear, *given: Tensor) -> Tensor:
        seen.append(MATMUL.fp32_precision == "tf32")
        return F.linear(*given)

    monkeypatch.setattr(Linear, "reference", reference)
    graph = layers(1, dtype=torch.float32)
    given = [torch.randn(64, 32), *graph.constants.values()]
    body = Graph((*graph.inputs, *graph.constants), graph.nodes, graph.outputs)
    full, rounded = references(body, given), references(body, given, EVERYWHERE)
    assert seen[0] is False and seen[2] is True and full.floor < 1e-5 < rounded.floor < 1e-3


@compiles
@pytest.mark.parametrize(("arch", "instruction"), [(80, r"HMMA\S*TF32"), (90, r"HGMMA\S*TF32"), (100, r"UTC\w*MMA")])
def test_tensor_cores_are_used(arch: int, instruction: str, tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    graph = graph_of(nn.Linear(256, 256), [torch.zeros(4096, 256)], torch.float32)
    (emitted,), _, _ = build.emit(graph, SM_90, BuildConfig())
    (step,) = emitted.steps
    assert isinstance(step, Launch)
    made = compile_kernel(step.kernel, arch)
    assert isinstance(made, Cubin), made
    (tmp_path / "kernel.cubin").write_bytes(made.code)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    listing = subprocess.run([tool, "-sass", str(tmp_path / "kernel.cubin")], capture_output=True, text=True, check=True).stdout
    assert re.search(instruction, listing)
