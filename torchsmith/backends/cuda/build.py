"""A graph into engine bytes: fuse, place, choose tactics, emit, compile, write."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.backends.cuda import plan, tactics
from torchsmith.backends.cuda.cubins import Cubin, compile_all
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import View, is_view, place, place_node
from torchsmith.backends.cuda.steps import Launch, Step
from torchsmith.backends.cuda.tactics import Tactic
from torchsmith.config import BuildConfig
from torchsmith.errors import BuildError
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.target import Target


@dataclass(frozen=True)
class Chosen:
    """A node of the final graph and how it runs. tactic: None for a view, and for an op that runs as its reference."""

    node: Node
    tactic: Tactic | None
    milliseconds: float | None = None


def build_engine(graph: Graph, target: Target, config: BuildConfig) -> bytes:
    emitted, views, packed = emit(graph, target, config)
    cubins = compile_steps([s for v in emitted for s in v.steps], int(target.arch.removeprefix("sm_")))
    return plan.write(target, graph.inputs, graph.outputs, emitted, views, packed.tensors, cubins, versions())


def emit(graph: Graph, target: Target, config: BuildConfig) -> tuple[list[plan.Emitted], dict[Value, View], Packed]:
    """The steps of every variant, before anything is compiled."""
    fused = fuse(graph)
    placed, packed = place(fused), Packed(graph.constants)
    views = dict(placed)
    chosen = settle(fused.nodes, views, packed)
    return [steps_of(chosen, views, packed, {})], views, packed


def settle(nodes: Sequence[Node], views: dict[Value, View], packed: Packed) -> list[Chosen]:
    """Each node with its best guess; fused nodes that no template takes are taken apart. Adds the views of what is inside."""
    chosen: list[Chosen] = []
    for node in nodes:
        if is_view(node, views):
            chosen.append(Chosen(node, None))
            continue
        found, _ = tactics.tactics_of(Emission(node, views, packed), limit=1)
        if found:
            chosen.append(Chosen(node, found[0]))
        elif isinstance(node.op, Fused):
            outer = {v: views[v] for v in node.outputs}
            for inner in node.op.body.nodes:
                place_node(inner, views)
                views.update({v: outer[v] for v in inner.outputs if v in outer})
            chosen += settle(node.op.body.nodes, views, packed)
        else:
            chosen.append(Chosen(node, None))
    return chosen


def steps_of(chosen: Sequence[Chosen], views: dict[Value, View], packed: Packed, at: Mapping[str, int]) -> plan.Emitted:
    steps, about = list[Step](), list[dict[str, Any]]()
    for choice in chosen:
        if choice.tactic is None and is_view(choice.node, views):
            continue
        e = Emission(choice.node, views, packed)
        if choice.tactic is None:
            e.call(choice.node.op, choice.node.inputs, choice.node.outputs)
        else:
            tactics.template(choice.tactic.template).emit(e, choice.tactic.config)
        views.update(e.views)
        steps += e.steps
        row = {"node": str(choice.node.op), "tactic": str(choice.tactic or "PyTorch"), "origin": choice.node.origin}
        about += [row if i == 0 else {**row, "tactic": ""} for i in range(len(e.steps))]
    return plan.Emitted(at, steps, about)


def compile_steps(steps: Sequence[Step], arch: int) -> dict[str, Cubin]:
    """Machine code of every kernel in the steps. Raises BuildError where one cannot be compiled."""
    made: dict[str, Cubin] = {}
    for kernel, cubin in compile_all([s.kernel for s in steps if isinstance(s, Launch)], arch):
        if isinstance(cubin, str):
            raise BuildError(f"the kernel {kernel.function} cannot be compiled for sm_{arch}: {cubin}")
        made[kernel.key()] = cubin
    return made


def versions() -> dict[str, str]:
    return {
        "torchsmith": importlib.metadata.version("torchsmith"),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
    }


__all__ = ["build_engine", "emit"]
