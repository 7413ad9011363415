"""Every op of the IR runs inside an engine as its own reference, recorded in a CUDA graph, and as kernels where there are some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.cases import CASES, F32, Case
from tests.backends.cuda.on_gpu.nets import needs_gpu
from torchsmith import backends
from torchsmith.backends.cuda import build, plan
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.tune import Chosen
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.op import REGISTRY
from torchsmith.ir.types import type_of
from torchsmith.ir.widen import widened
from torchsmith.target import Target
from torchsmith.testing.compare import check_close


def test_every_op_has_a_case() -> None:
    library = {name for name, op in REGISTRY.items() if not op.__module__.startswith("torchsmith.ops.")}
    assert {c.op for c in CASES} == set(REGISTRY) - library


def graph_of(case: Case, dtype: torch.dtype) -> tuple[Graph, list[Tensor]]:
    given = [t.to(dtype) if t.is_floating_point() else t for t in case.inputs]
    with Builder() as b:
        results = case.make()(*(b.input(type_of(t)) for t in given))
        return b.finish(list(results) if isinstance(results, tuple) else [results]), given


def called(graph: Graph, target: Target) -> bytes:
    """An engine in which every node runs as its reference in PyTorch."""
    views, packed = place(graph), Packed(graph.constants)
    steps = build.steps_of([Chosen(node, None) for node in graph.nodes], views, packed, {})
    return plan.write(target, graph.inputs, graph.outputs, [steps], views, packed.tensors, {}, build.versions())


def reference(graph: Graph, given: Sequence[Tensor]) -> list[Tensor]:
    wide = [t.double() if t.is_floating_point() else t for t in given]
    return interpret(widened(graph), wide)


def runs(case: Case, dtype: torch.dtype, make: Callable[[Graph, Target], bytes]) -> None:
    graph, given = graph_of(case, dtype)
    run = BACKEND.load(make(graph, backends.target_of("cuda")), backends.target_of("cuda"))
    on_gpu, wanted = [t.cuda() for t in given], reference(graph, given)
    first = [t.cpu() for t in run(on_gpu)]
    again = [t.cpu() for t in run(on_gpu)]  # from the recorded graph
    for results in (first, again):
        assert [t.dtype for t in results] == [v.type.dtype for v in graph.outputs]
        for result, want in zip(results, wanted, strict=True):
            check_close(result, want)


def pairs() -> list[Any]:
    found = []
    for number, c in enumerate(CASES):
        floating = any(t.is_floating_point() for t in c.inputs)
        for dtype in c.dtypes if floating else (F32,):
            found.append(pytest.param(c, dtype, id=f"{number}-{c}" + (f"-{str(dtype)[6:]}" if floating else "")))
    return found


@needs_gpu
@pytest.mark.parametrize(("case", "dtype"), pairs())
def test_as_a_call_in_a_recorded_graph(case: Case, dtype: torch.dtype) -> None:
    runs(case, dtype, called)


def test_references_copy_nothing_from_the_host() -> None:
    """What would break a recording: tensors made of numbers on the CPU where the engine's device is another."""
    made: list[str] = []
    with torch.device("meta"):
        for c in CASES:
            if not c.inputs:
                result = c.make().reference()
                if isinstance(result, Tensor) and not result.is_meta:
                    made.append(str(c))
    assert not made, f"made elsewhere than where the engine runs: {made}"
