from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.cuda.problems import layers
from torchsmith.backends.cuda import build
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.plan import LaunchStep, read
from torchsmith.backends.cuda.tune import Choice, Chosen
from torchsmith.config import BuildConfig, Config
from torchsmith.errors import BuildError, InvalidOption
from torchsmith.target import Target

GUESSES = BuildConfig(tune=False)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_an_engine_is_built_for_a_gpu_that_is_not_here(arch: str) -> None:
    target = Target("cuda", arch)
    plan, tensors = read(BACKEND.build(layers(), target, GUESSES))
    (variant,) = plan.variants
    assert plan.target == target and [type(s) for s in variant.steps] == [LaunchStep] * 2
    assert all(tensors[k.code].numel() for k in plan.kernels)
    assert variant.steps[0].about["tactic"].startswith("gemm ") and "microseconds" not in variant.steps[0].about


def test_two_builds_give_the_same_bytes() -> None:
    target = Target("cuda", "sm_90")
    torch.manual_seed(0)
    graph = layers()
    assert BACKEND.build(graph, target, GUESSES) == BACKEND.build(graph, target, GUESSES)


def test_a_dynamic_engine_of_two_variants() -> None:
    """Tuned for two sizes apart, with weights that both use."""
    graph = layers(1, rows="s0")

    def apart(graph: Any, views: Any, packed: Any, target: Any, config: Any) -> list[Choice]:
        from torchsmith.backends.cuda.tactics import tactics_of
        from torchsmith.backends.cuda.tune import Search

        search = Search(views, packed, 8)
        (node,) = graph.nodes
        found = [t for t in tactics_of(search.emission(node), 8)[0] if t.template == "gemm"]
        return [Choice({"s0": 2}, [Chosen(node, found[0], 1.25)]), Choice({"s0": 32}, [Chosen(node, found[1])])]

    emitted, views, packed = build.emit(graph, Target("cuda", "sm_90"), GUESSES, apart)
    cubins = build.compile_steps([s for v in emitted for s in v.steps], 90)
    target = Target("cuda", "sm_90")
    plan, _ = read(build.plan.write(target, graph.inputs, graph.outputs, emitted, views, packed.tensors, cubins, {}))
    assert [dict(v.at) for v in plan.variants] == [{"s0": 2}, {"s0": 32}]
    assert [v.steps[0].about.get("microseconds") for v in plan.variants] == [1.25, None]
    assert len(plan.kernels) == 2


def test_a_kernel_that_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted, _, _ = build.emit(layers(1), Target("cuda", "sm_90"), GUESSES)
    monkeypatch.setattr(build, "compile_all", lambda kernels, arch, workers: [(k, "too much shared memory") for k in kernels])
    with pytest.raises(BuildError, match=r"the kernel gemm.* cannot be compiled for sm_90: too much shared memory"):
        build.compile_steps(emitted[0].steps, 90)


def test_the_options_of_tuning() -> None:
    config = Config.from_options(tune=False, timing_cache_path=Path("somewhere"), tactics_per_node=3, compile_workers=2).build
    assert (
        dataclasses.replace(BuildConfig(), tune=False, timing_cache_path="somewhere", tactics_per_node=3, compile_workers=2)
        == config
    )
    assert Config.from_options(timing_cache_path=None).build.timing_cache_path is None
    for wrong in ({"timing_cache_path": 3}, {"tune": "yes"}, {"tactics_per_node": -1}):
        with pytest.raises(InvalidOption, match=next(iter(wrong))):
            Config.from_options(**wrong)
