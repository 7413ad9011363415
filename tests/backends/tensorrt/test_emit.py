"""Graphs as TensorRT networks: edges, sizes, names, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from tests.backends.cases import CASES, F16, F32, I64
from tests.backends.tensorrt.checks import check, check_graph, graph_of
from tests.backends.tensorrt.test_ops import refusal_of, weights
from torchsmith.backends.tensorrt import emit
from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast
from torchsmith.ops.create import Arange
from torchsmith.ops.expand import Expand
from torchsmith.ops.linear import Linear
from torchsmith.ops.permute import Permute
from torchsmith.ops.size import Size
from torchsmith.ops.softmax import Softmax
from torchsmith.ops.unary import Unary

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)
N, M = symbol("n"), symbol("m")
BYTES = torch.arange(12, dtype=torch.uint8).reshape(3, 4)


def chain(*ops: Any, of: TensorType) -> Graph:
    with Builder() as b:
        value = b.input(of)
        for op in ops:
            value = op(value)
        return b.finish([value])


# ---- edges ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F16, torch.bfloat16, I64, torch.int32, torch.int8, torch.uint8, torch.bool])
def test_every_dtype_goes_in_and_out(dtype: torch.dtype) -> None:
    for shape in ((3, 4), (), (1,)):
        x = torch.randint(0, 2, shape).to(dtype)
        check(Permute(tuple(range(len(shape)))), x)


def test_bytes_are_int32_inside_and_bytes_outside() -> None:
    check(Binary("add"), BYTES, BYTES)
    check(Cast(F32), BYTES)
    check(Cast(torch.uint8), BYTES.float() * 20)
    with Builder() as b:
        x = b.input(TensorType((3, 4), torch.uint8))
        check_graph(b.finish([x, b.constant(BYTES)]), [BYTES])


def test_outputs_that_are_inputs_constants_or_said_twice() -> None:
    with Builder() as b:
        x, c = b.input(TensorType((2, 3), F16)), b.constant(torch.ones(2, 3, dtype=F16))
        y = Binary("add")(x, c)
        graph = b.finish([y, x, c, y])
    check_graph(graph, [torch.rand(2, 3).half()])


def test_inputs_that_nothing_reads() -> None:
    with Builder({"n": (1, 4)}) as b:
        x, _ = b.input(TensorType((2, 3), F32)), b.input(TensorType((N,), I64))
        graph = b.finish([Unary("relu")(x)])
    check_graph(graph, [torch.rand(2, 3), torch.ones(3, dtype=I64)])


def test_one_constant_read_both_ways() -> None:
    weight = torch.randn(24, 24)
    with Builder() as b:
        x, matrix = b.input(TensorType((5, 24), F32)), b.constant(weight)
        graph = b.finish([Linear()(x, matrix), Binary("mul")(matrix, matrix)])
    check_graph(graph, [torch.randn(5, 24)])


def test_layers_are_named_after_their_nodes() -> None:
    with Builder() as b:
        x = b.input(TensorType((2, 3), F32))
        with b.at("aten.softmax at model.py:7"):
            y = Softmax(1)(x)
        emission = emit.Emission(b.finish([Unary("relu")(y)]))
    network = emission.emit_all()
    names = [network.get_layer(number).name for number in range(network.num_layers)]
    assert any(name.startswith("0 Softmax of aten.softmax at model.py:7 [") for name in names), names
    assert any(name.startswith("1 Unary [") for name in names) and len(set(names)) == len(names), names


# ---- sizes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [N + M, 2 * N * M, FloorDiv(M, 2) + 1, N**2, Mod(M, 3) + 1, Max(N, M), Min(N, M), M - N + 7, FloorDiv(N * M, N + 1)],
    ids=str,
)
def test_sizes_are_computed_as_the_engine_runs(size: Any) -> None:
    given = [torch.zeros(n, m) for n, m in ((1, 2), (3, 5), (8, 4))]
    with Builder({"n": (1, 9), "m": (2, 9)}) as b:
        x = b.input(TensorType((N, M), F32))
        graph = b.finish([Size(size)(), Expand((size, N, M))(x), Arange(N, 1, size, I64)()])
    check_graph(graph, *([x] for x in given))


# ---- refusals ---------------------------------------------------------------------------------------------------------------


def test_asking_is_not_told_otherwise_than_building() -> None:
    """The partition asks of an op as models have it, with its weights, by its node alone, to which all are inputs."""
    for case in CASES:
        (node,) = graph_of(case.make(), case.inputs, weights(case)).nodes
        assert emit.refuses(node) == refusal_of(case, list(case.inputs)), str(case)


def test_float64_is_refused() -> None:
    for graph in (chain(Unary("relu"), of=TensorType((2,), torch.float64)), chain(Cast(torch.float64), of=TensorType((2,), F32))):
        (node,) = graph.nodes
        assert emit.refuses(node) == "TensorRT does not compute in torch.float64"


def test_more_dimensions_than_tensorrt_has_are_refused() -> None:
    (node,) = chain(Unary("relu"), of=TensorType((2,) * 9, F32)).nodes
    assert emit.refuses(node) == f"TensorRT's tensors have at most 8 dimensions, and here is {node.inputs[0].type}"


def test_an_op_without_an_emitter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = chain(Unary("relu"), of=TensorType((2,), F32)).nodes
    monkeypatch.delitem(emit.emitter.all(), Unary)
    assert emit.refuses(node) == "the tensorrt backend has no emitter for Unary"


def test_what_tensorrt_itself_refuses_is_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def emit_relu(e: emit.Emission, op: Unary, x: Any) -> Any:
        return e.reshape_to(x, (5, 5))

    (node,) = chain(Unary("relu"), of=TensorType((2, 3), F32)).nodes
    monkeypatch.setitem(emit.emitter.all(), Unary, emit_relu)
    refusal = emit.refuses(node)
    assert (
        refusal is not None and refusal.startswith("TensorRT does not take Unary[relu]: ") and "reshape changes volume" in refusal
    )


def test_a_bug_in_an_emitter_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = chain(Unary("relu"), of=TensorType((2,), F32)).nodes
    monkeypatch.setitem(emit.emitter.all(), Unary, lambda e, op, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        emit.refuses(node)


@pytest.mark.parametrize("wrong", [lambda e, op, x: e.to(x, I64), lambda e, op, x: e.rank(x, 4), lambda e, op, x: e.joined([x, x])])
def test_an_emitter_of_another_type_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: emit.Emitter) -> None:
    node: Node
    (node,) = chain(Unary("relu"), of=TensorType((2, 3), F32)).nodes
    monkeypatch.setitem(emit.emitter.all(), Unary, wrong)
    with pytest.raises(AssertionError, match="TensorRT gives"):
        emit.refuses(node)


def test_an_emitter_that_computes_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every emitter is checked."""
    check(Unary("relu"), torch.randn(2, 3))
    monkeypatch.setitem(emit.emitter.all(), Unary, lambda e, op, x: e.unary("ABS", x))
    with pytest.raises(AssertionError, match="output0 0: relative error"):
        check(Unary("relu"), torch.randn(2, 3))
