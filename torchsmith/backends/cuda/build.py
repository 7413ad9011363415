"""A graph into engine bytes: fuse, place, choose tactics, emit, compile, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton

from torchsmith.backends.cuda import carveout, plan, tactics, tune
from torchsmith.backends.cuda.cubins import Cubin, compile_all
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import View, is_view, place
from torchsmith.backends.cuda.precision import Tf32
from torchsmith.backends.cuda.roofline import flops_of
from torchsmith.backends.cuda.steps import Launch, Step
from torchsmith.backends.cuda.timing import device_timer
from torchsmith.backends.cuda.tune import Choose, Chosen, guess
from torchsmith.config import BuildConfig
from torchsmith.errors import BuildError
from torchsmith.ir.graph import Graph, Value
from torchsmith.target import Target
from torchsmith.version import __version__


def build_engine(graph: Graph, target: Target, config: BuildConfig) -> bytes:
    emitted, views, packed = emit(graph, target, config, tune.choose)
    cubins = compile_steps([s for v in emitted for s in v.steps], int(target.arch.removeprefix("sm_")), config.compile_workers)

    def engine(variants: Sequence[plan.Emitted]) -> bytes:
        return plan.write(target, graph.inputs, graph.outputs, variants, views, packed.tensors, cubins, versions())

    is_here = config.tune and device_timer(target) is not None
    return engine(carveout.settled(emitted, views, tune.points(graph)[0], target, engine if is_here else None))


def emit(
    graph: Graph, target: Target, config: BuildConfig, choose: Choose = guess
) -> tuple[list[plan.Emitted], dict[Value, View], Packed]:
    """The steps of every variant. Best guesses compile nothing and look nowhere.

    Constants are worked on where the engine keeps them, on the CPU: those of a model on a GPU and those that passes make may meet.
    """
    fused = fuse(dataclasses.replace(graph, constants={v: t.cpu() for v, t in graph.constants.items()}))
    tf32 = Tf32() if config.disable_tf32 else Tf32.allowed()
    views, packed = place(fused), Packed(fused.constants, tf32)
    choices = choose(fused, views, packed, target, config)
    return [steps_of(c.chosen, views, packed, c.at) for c in choices], views, packed


def steps_of(chosen: Sequence[Chosen], views: dict[Value, View], packed: Packed, at: Mapping[str, int]) -> plan.Emitted:
    steps, about = list[Step](), list[dict[str, Any]]()
    for choice in chosen:
        if choice.tactic is None and is_view(choice.node, views):
            continue
        e = Emission(choice.node, views, packed, "".join(f"@{size}" for size in at.values()))
        if choice.tactic is None:
            e.call(choice.node.op, choice.node.inputs, choice.node.outputs)
        else:
            tactics.template(choice.tactic.template).emit(e, choice.tactic.config)
        views.update(e.views)
        steps += e.steps
        row = {"node": str(choice.node.op), "tactic": str(choice.tactic or "PyTorch"), "origin": choice.node.origin}
        flops = flops_of(choice.node)
        first: dict[str, Any] = {"flops": flops if isinstance(flops, int) else str(flops)}
        if choice.microseconds is not None:
            first["microseconds"] = round(choice.microseconds, 3)
        if choice.two_four is not None:
            first["two_four"] = dataclasses.asdict(choice.two_four)
        about += [{**row, **first} if i == 0 else {**row, "tactic": ""} for i in range(len(e.steps))]
    return plan.Emitted(at, steps, about)


def compile_steps(steps: Sequence[Step], arch: int, workers: int = 0) -> dict[str, Cubin]:
    """Machine code of every kernel in the steps. Raises BuildError where one cannot be compiled."""
    made: dict[str, Cubin] = {}
    for kernel, cubin in compile_all([s.kernel for s in steps if isinstance(s, Launch)], arch, workers):
        if isinstance(cubin, str):
            raise BuildError(f"the kernel {kernel.function} cannot be compiled for sm_{arch}: {cubin}")
        made[kernel.key()] = cubin
    return made


def versions() -> dict[str, str]:
    return {
        "torchsmith": __version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
