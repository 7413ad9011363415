"""Products through tensor descriptors compile where they may, and what they need reaches engines: scratch memory. Refusals."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import torchsmith
from tests.backends.cuda.simulated import graph_of
from tests.backends.cuda.test_gemm import Residual, launches
from torchsmith.backends.cuda import build, plan, tune
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.memory import ALIGNMENT, arrange
from torchsmith.backends.cuda.run import lifetimes
from torchsmith.backends.cuda.tactics import Tactic, kind_of
from torchsmith.backends.cuda.tactics.gemm_tma import TEMPLATE, GemmTmaConfig
from torchsmith.backends.cuda.timing import Bench, _Memory
from torchsmith.backends.cuda.tune import Choice, Chosen
from torchsmith.config import BuildConfig
from torchsmith.errors import EngineMismatch, Unsupported
from torchsmith.target import Target

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")
SM_90 = Target("cuda", "sm_90")
CONFIG = GemmTmaConfig(128, 128, 64, 8, 3)


def emission(module: nn.Module, inputs: list[Any], arch: int = 90) -> Emission:
    """Of the last product."""
    graph = fuse(graph_of(module, inputs))
    node = [n for n in graph.nodes if getattr(n.op, "kind", type(n.op).__name__) in TEMPLATE.kinds][-1]
    return Emission(node, place(graph), Packed(graph.constants), arch=arch)


@interpreted
@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("config", [GemmTmaConfig(128, 256, 64, 8, 3), GemmTmaConfig(128, 128, 64, 4, 4)], ids=str)
def test_compiles(arch: int, config: GemmTmaConfig) -> None:
    (step,) = launches(Residual(768, 768), [torch.zeros(4100, 768), torch.zeros(4100, 768)], "gemm", "gemm_tma", config)
    made = compile_kernel(step.kernel, arch)
    assert isinstance(made, Cubin), made
    assert made.scratch_bytes == 256 and made.threads >= 32 * config.num_warps and made.pdl


@interpreted
def test_scratch_memory_that_is_too_small_is_refused() -> None:
    (step,) = launches(Residual(768, 768), [torch.zeros(4100, 768), torch.zeros(4100, 768)], "gemm", "gemm_tma", CONFIG)
    assert "256 bytes of scratch memory" in str(compile_kernel(replace(step.kernel, scratch_bytes=128), 90))


def test_earlier_targets_are_refused() -> None:
    with pytest.raises(Unsupported, match="tensor descriptors take sm_90, and the target is sm_80"):
        TEMPLATE.configs(emission(nn.Linear(768, 768), [torch.zeros(4096, 768)], 80))


@pytest.mark.parametrize(
    ("module", "inputs", "why"),
    [
        (nn.Linear(768, 768), [torch.zeros(16, 768)], "not large"),
        (nn.Linear(764, 768), [torch.zeros(4096, 764)], "multiples of 16 bytes"),
        (nn.Conv2d(768, 768, 1, stride=2), [torch.zeros(16, 768, 32, 32)], "a batch of 16 products"),
    ],
)
def test_refusals(module: nn.Module, inputs: list[Any], why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        TEMPLATE.configs(emission(module, inputs))


def test_dynamic_rows_are_taken() -> None:
    sizes = torchsmith.Input(min_shape=(1, 768), opt_shape=(4096, 768), max_shape=(8192, 768))
    assert TEMPLATE.configs(emission(nn.Linear(768, 3072), [sizes]))


def test_runs_that_are_timed_take_turns_with_scratch_memory() -> None:
    """One run writes its descriptors while the run before, whose weights may be another copy, still reads its own."""
    graph = fuse(graph_of(nn.Linear(64, 64), [torch.zeros(32, 64)], torch.float16))
    search = tune.Search(place(graph), Packed(graph.constants), 8, arch=90)
    node = next(n for n in graph.nodes if kind_of(search.emission(n)) in TEMPLATE.kinds)
    candidate = search.candidate(search.problem(node, {}), Tactic("gemm_tma", CONFIG))
    bench = Bench(node, {}, torch.device("cpu"))
    first = _Memory(bench, candidate, bench.inputs(candidate))
    (copy,) = bench._copies(candidate, first, 1 << 20)
    second = _Memory(bench, candidate, bench.inputs(candidate), first, copy)
    launched: list[list[Any]] = []
    for memory in (first, second):
        memory.run(lambda step, grid, arguments, stream: launched.append(arguments))
    assert launched[0][:-1] == launched[1][:-1] and launched[0][-1] != launched[1][-1]


# ---- scratch memory in engines --------------------------------------------------------------------------------------------


def engine(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Two layers through descriptors."""

    def choose(graph: Any, views: Any, packed: Any, target: Any, config: Any) -> list[Choice]:
        rest = tune.guess(graph, views, packed, target, config)[0].chosen
        large = [Chosen(c.node, Tactic("gemm_tma", CONFIG)) if c.tactic and c.tactic.template == "gemm" else c for c in rest]
        return [Choice({}, large)]

    monkeypatch.setattr(tune, "choose", choose)
    graph = graph_of(nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)), [torch.zeros(2048, 512)])
    return build.build_engine(graph, SM_90, BuildConfig(compile_workers=1))


def test_scratch_memory_is_of_the_plan_and_lives_through_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = plan.read(engine(monkeypatch))
    steps = found.variants[0].steps
    memory = [s.arguments[-1]["value"] for s in steps if isinstance(s, plan.LaunchStep) and found.kernels[s.kernel].scratch_bytes]
    assert len(memory) == 2 == len(set(memory))
    lives = {life.name: life for life in lifetimes(found, found.variants[0], {})[0]}
    assert all((lives[m].first, lives[m].last) == (0, len(steps)) for m in memory)
    offsets, _ = arrange(list(lives.values()))
    assert ALIGNMENT % 128 == 0 and all(offsets[m] % ALIGNMENT == 0 for m in memory)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data, row: row.update(scratch_bytes=-1), "-1 bytes of scratch"),
        (lambda data, row: row.update(scratch_bytes=1 << 20), "with 1048576 bytes of scratch memory for each program"),
        (lambda data, row: row["types"].__setitem__(-1, "*fp16"), "and takes"),
    ],
)
def test_plans_with_wrong_scratch_memory_are_refused(monkeypatch: pytest.MonkeyPatch, change: Any, why: str) -> None:
    data = engine(monkeypatch)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["plan"])
    change(content, next(row for row in content["kernels"] if "scratch_bytes" in row))
    header["__metadata__"]["plan"] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with pytest.raises(EngineMismatch, match=why):
        plan.read(len(text).to_bytes(8, "little") + text + data[8 + size :])
