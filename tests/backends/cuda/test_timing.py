from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backends.cuda.problems import layers, placed
from torchsmith.backends.cuda import tune
from torchsmith.backends.cuda.accuracy import References, body_of, index_limit, judge, references
from torchsmith.backends.cuda.candidate import Candidate
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.steps import Call, Launch
from torchsmith.backends.cuda.timing import Bench, DeviceTimer
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.types import TensorType
from torchsmith.ops.gather import Gather
from torchsmith.ops.linear import Linear
from torchsmith.ops.unary import Unary

CPU = torch.device("cpu")


def called(graph: Graph, **changes: Any) -> Candidate:
    """The only node in PyTorch, as a candidate."""
    views, packed = placed(graph)
    (node,) = graph.nodes
    candidate = Candidate(node, None, [Call(node.op, node.inputs, node.outputs)], views, packed.tensors)
    return dataclasses.replace(candidate, **changes)


def wanted(*, wide: Tensor, dtype: torch.dtype = torch.float16, floor: float = 2e-4) -> References:
    return References([wide], [wide.to(dtype)], floor)


# ---- the gate -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_passes_and_more_does_not(dtype: torch.dtype) -> None:
    body = body_of(fuse(layers(1, dtype=dtype)).nodes[0], {})
    inputs = [torch.randn(*v.type.shape).to(dtype) for v in body.inputs]
    references_ = references(body, inputs)
    (wide,) = references_.wide
    assert wide.dtype == torch.float64 and judge([wide.to(dtype)], references_).fault is None
    worse = (wide * (1 + 20 * torch.finfo(dtype).eps)).to(dtype)
    assert "PyTorch by" in (judge([worse], references_).fault or "")


def test_one_wrong_element_among_many_is_found() -> None:
    wide = torch.randn(1 << 21, dtype=torch.float64)
    found = wide.half()
    found[12345] += 0.5
    fault = judge([found], wanted(wide=wide)).fault
    assert fault is not None and "an element" in fault


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_never_passes(bad: float) -> None:
    wide = torch.randn(100, dtype=torch.float64)
    found = wide.half()
    found[3] = bad
    accuracy = judge([found], wanted(wide=wide))
    assert accuracy.error == math.inf and "1 elements that are no numbers" in (accuracy.fault or "")


def test_infinities_belong_where_float64_has_them() -> None:
    wide = torch.tensor([1.0, -math.inf, 1e6], dtype=torch.float64)
    assert judge([wide.half()], wanted(wide=wide)).fault is None, "what overflows in its own dtype is passed over"
    assert judge([torch.tensor([1.0, 0.0, 0.0]).half()], wanted(wide=wide)).fault is not None


def test_large_results_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(3, 50, 7, dtype=torch.float64)
    whole = judge([wide.half()], wanted(wide=wide))
    monkeypatch.setattr("torchsmith.backends.cuda.accuracy._CHUNK", 16)
    assert judge([wide.half()], wanted(wide=wide)).error == pytest.approx(whole.error)


def test_whole_numbers_are_compared_as_they_are() -> None:
    numbers = torch.arange(100)
    right = References([numbers], [numbers], 0.0)
    assert judge([numbers.clone()], right).fault is None
    assert judge([numbers + (numbers == 7)], right).fault is not None


# ---- inputs -------------------------------------------------------------


def test_inputs_are_random_and_constants_are_real() -> None:
    graph = layers(1)
    candidate = called(Graph(graph.inputs, graph.nodes[:1], graph.nodes[0].outputs, graph.constants))
    bench = Bench(candidate.node, {}, CPU)
    (x,) = bench.inputs(candidate).values()
    assert 0.8 < float(x.float().std()) < 1.2 and x.dtype == torch.float16
    (weight,) = graph.constants
    assert torch.equal(bench.constant(weight, candidate), graph.constants[weight].reshape(-1))
    assert bench.check(candidate, no_kernels).fault is None


def test_inputs_are_drawn_so_that_results_stay_finite() -> None:
    with Builder() as b:
        graph = b.finish([Unary("log")(b.input(TensorType((1000,), torch.float32)))])
    candidate = called(graph)
    bench = Bench(candidate.node, {}, CPU)
    assert float(next(iter(bench.inputs(candidate).values())).min()) > 0
    assert bench.references(candidate).is_finite()


def test_indices_are_within_their_table() -> None:
    with Builder() as b:
        table, index = b.input(TensorType((11, 4), torch.float32)), b.input(TensorType((500,), torch.int64))
        graph = b.finish([Gather(0)(table, index)])
    candidate = called(graph)
    bench = Bench(candidate.node, {}, CPU)
    assert index_limit(bench.body, bench.body.inputs[1]) == 11
    drawn = bench.inputs(candidate)[index]
    assert (int(drawn.min()), int(drawn.max())) == (0, 10)
    assert bench.check(candidate, no_kernels).fault is None


def test_views_of_one_root_share_its_storage() -> None:
    graph = layers(1)
    candidate = called(Graph(graph.inputs, graph.nodes[:1], graph.nodes[0].outputs, graph.constants))
    (x, *_) = candidate.node.inputs
    wide = type(x)("wide", TensorType((64, 96), torch.float16))
    views = {**candidate.views, wide: View(wide, (96, 1)), x: View(wide, (96, 1), 32)}
    candidate = dataclasses.replace(candidate, views=views)
    bench = Bench(candidate.node, {}, CPU)
    assert [(v.name, t.numel()) for v, t in bench.inputs(candidate).items()] == [("wide", 64 * 96)]
    assert bench.check(candidate, no_kernels).fault is None


# ---- candidates -------------------------------------------------------------


def no_kernels(step: Launch, grid: Any, arguments: Any, stream: int) -> None:
    raise AssertionError("no kernels run here")


def one_kernel() -> tuple[Candidate, Bench]:
    graph = fuse(layers(1, rows="s0"))
    search = tune.Search(*placed(graph), 1)
    problem = search.problem(graph.nodes[0], {"s0": 5})
    candidate = search.candidate(problem, problem.tactics[0])
    return candidate, Bench(candidate.node, {"s0": 5}, CPU)


def test_results_that_nobody_wrote_are_no_results() -> None:
    candidate, bench = one_kernel()
    fault = bench.check(candidate, lambda step, grid, arguments, stream: None).fault
    assert fault is not None and "not written" in fault


def test_kernels_get_addresses_and_bound_sizes() -> None:
    candidate, bench = one_kernel()
    (launch,) = candidate.launches
    seen: list[Any] = []
    bench.check(candidate, lambda step, grid, arguments, stream: seen.append((grid, arguments)))
    ((grid, arguments),) = seen
    assert all(type(n) is int for n in (*grid, *arguments)) and len(arguments) == len(launch.kernel.types)
    assert 5 in arguments


def test_writing_next_to_the_results_is_found() -> None:
    import ctypes

    candidate, bench = one_kernel()
    (launch,) = candidate.launches
    place = launch.arguments.index(candidate.node.outputs[0])

    def tramples(step: Launch, grid: Any, arguments: Any, stream: int) -> None:
        ctypes.memset(arguments[place] + 2 * 5 * 32, 0, 2)

    assert "it writes outside of" in (bench.check(candidate, tramples).fault or "")


def test_candidates_of_one_node_share_a_bench() -> None:
    timer = DeviceTimer(CPU)
    candidate, _ = one_kernel()
    first = timer.bench(candidate)
    assert timer.bench(dataclasses.replace(candidate, tactic=None)) is first
    assert timer.bench(dataclasses.replace(candidate, at={"s0": 6})) is not first


def test_cold_weights_are_copied_until_they_fill_the_cache() -> None:
    graph = layers(1)
    candidate = called(Graph(graph.inputs, graph.nodes[:1], graph.nodes[0].outputs, graph.constants))
    from torchsmith.backends.cuda.candidate import Memory

    bench = Bench(candidate.node, {}, CPU)
    memory = Memory(bench, candidate, bench.inputs(candidate))
    assert bench._copies(candidate, memory, 1 << 20) == []
    copies = bench._copies(dataclasses.replace(candidate, cold=True), memory, 10 * 2048)
    (weight,) = graph.constants
    assert len(copies) == 19 and all(torch.equal(c[weight], graph.constants[weight].reshape(-1)) for c in copies)
    assert len({c[weight].data_ptr() for c in copies}) == 19


def test_a_plain_node_has_itself_as_body() -> None:
    with Builder() as b:
        x = b.input(TensorType((4, 8), torch.float32))
        graph = b.finish([Linear()(x, b.constant(torch.randn(8, 8)))])
    node: Node = graph.nodes[0]
    body = body_of(node, {})
    assert len(body.inputs) == 2 and len(body.nodes) == 1 and not body.constants


# ---- how long -------------------------------------------------------------


@pytest.mark.parametrize(
    ("rough", "host", "replayed"),
    [
        (20.0, 15.0, [10, 200]),  # of 5 µs a run: a thousand microseconds of runs
        (1e6, 20.0, [1]),  # so long that what the host takes is nothing
        (170_000.0, 169_000.0, [2, 2]),  # the host's: what the GPU takes is seen in a graph alone
        (900_000.0, 899_000.0, [1, 1]),
    ],
)
def test_what_the_host_takes_is_no_part_of_it(
    rough: float, host: float, replayed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def replays(sets: Any, launch: Any, runs: int, *rest: Any) -> float:
        seen.append(runs)
        return 5.0 if rough < 1e6 else rough

    monkeypatch.setattr("torchsmith.backends.cuda.timing._timed", lambda act, device: (rough, host))
    monkeypatch.setattr("torchsmith.backends.cuda.timing._replayed", replays)
    with Builder() as b:
        graph = b.finish([Unary("relu")(b.input(TensorType((4, 4), torch.float32)))])
    candidate = called(graph)
    found = Bench(candidate.node, {}, CPU).time(candidate, lambda *_: None, 1 << 20)
    assert seen == replayed and found == (5.0 if rough < 1e6 else rough)
