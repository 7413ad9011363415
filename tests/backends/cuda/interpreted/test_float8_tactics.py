"""Every tactic that float8 nodes have, against float64, by the gate that tuning has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.backends.cuda.on_gpu.test_gpu_float8 import attends, norms, pointwise, product
from torchsmith.backends.cuda.accuracy import judge
from torchsmith.backends.cuda.emission import Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.simulate import simulate
from torchsmith.backends.cuda.timing import Bench
from torchsmith.backends.cuda.tune import Search
from torchsmith.ir.graph import Graph

HALF = torch.float16
CASES: dict[str, Callable[[], Graph]] = {
    "odd": lambda: product(37, 300, 45, HALF, True, residual=True),
    "sixteens": lambda: product(24, 128, 48, torch.bfloat16, True),
    "halves": lambda: product(33, 64, 48, HALF, False),
    "rows": lambda: product(2, 70, 20, HALF, True),
    "row": lambda: product(1, 48, 16, torch.float32, False),
    "attention": lambda: attends(1, 2, 21, 37, 33),
    "hidden": lambda: attends(2, 1, 13, 29, 32, "bool"),
    "added": lambda: attends(1, 2, 10, 40, 20, "add", dtype=torch.bfloat16),
    "causal": lambda: attends(1, 1, 35, 35, 16, causal=True),
    "norm": lambda: norms(8, 96),
    "pointwise": lambda: pointwise(5, 33),
}


@pytest.mark.parametrize("case", CASES)
def test_each_tactic_gives_what_the_graph_means(case: str) -> None:
    graph = fuse(CASES[case]())
    search = Search(place(graph), Packed(graph.constants), 100)
    for node in graph.nodes:
        problem = search.problem(node, {})
        bench = Bench(node, {}, torch.device("cpu"))
        assert len(problem.tactics) > 1
        for tactic in problem.tactics:
            candidate = search.candidate(problem, tactic)
            given = bench.inputs(candidate)
            found = simulate(candidate.steps, given, node.outputs, candidate.tensors, {**search.views, **candidate.views}, {})
            accuracy = judge(found, bench.references(candidate))
            assert accuracy.fault is None, (str(tactic), accuracy)
