"""Emitting our IR: types, sizes, and what is refused."""

from __future__ import annotations

import openvino as ov
import pytest
import torch

from torchsmith.backends.openvino import emit
from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import FloorDiv, symbol
from torchsmith.ir.graph import Graph, Node
from torchsmith.ir.interpret import interpret
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.cast import Cast
from torchsmith.ops.expand import Expand
from torchsmith.ops.linear import Linear
from torchsmith.ops.matmul import MatMul
from torchsmith.ops.unary import Unary

N, M = symbol("n"), symbol("m")


def graph(op, *types: TensorType) -> Graph:  # type: ignore[no-untyped-def]
    with Builder({"n": (1, 9), "m": (2, None)}) as b:
        return b.finish([op(*(b.input(t) for t in types))])


def test_ranges_are_openvinos_bounds() -> None:
    model = emit.emit(graph(Unary("relu"), TensorType((N, M, 4), torch.float32)))
    n, m, four = model.input(0).partial_shape
    assert (n.min_length, n.max_length) == (1, 9)
    assert (m.min_length, m.max_length) == (2, -1)
    assert four.get_length() == 4


@pytest.mark.parametrize("size", [N + M, 2 * N * M, FloorDiv(M, 2) + 1, N**2])
def test_sizes_are_computed_as_the_engine_runs(size: object) -> None:
    model = emit.emit(graph(Expand((size, N, M)), TensorType((N, M), torch.float32)))  # type: ignore[arg-type]
    run = ov.Core().compile_model(model, "CPU")
    for n, m in ((1, 2), (3, 5)):
        (given,) = run([torch.zeros(n, m).numpy()]).values()
        assert given.shape == (size.subs({N: n, M: m}), n, m)  # type: ignore[attr-defined]


def test_float64_is_refused() -> None:
    (node,) = graph(Unary("relu"), TensorType((2,), torch.float64)).nodes
    assert emit.refuses(node, {}) == "OpenVINO's CPU engine does not compute in torch.float64"
    (node,) = graph(Cast(torch.float64), TensorType((2,), torch.float32)).nodes
    assert "float64" in str(emit.refuses(node, {}))


def test_an_op_without_an_emitter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = graph(Unary("relu"), TensorType((2,), torch.float32)).nodes
    monkeypatch.delitem(emit.emitter.all(), Unary)
    assert emit.refuses(node, {}) == "the openvino backend has no emitter for Unary"


def test_a_bug_in_an_emitter_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    (node,) = graph(Unary("relu"), TensorType((2,), torch.float32)).nodes
    monkeypatch.setitem(emit.emitter.all(), Unary, lambda e, op, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        emit.refuses(node, {})


def test_an_emitter_of_another_type_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    made = graph(Unary("relu"), TensorType((2,), torch.float32))
    monkeypatch.setitem(emit.emitter.all(), Unary, lambda e, op, x: ov.opset15.convert(x, "i32"))
    with pytest.raises(AssertionError, match="OpenVINO gives"):
        emit.emit(made)


def test_nodes_that_cannot_be_probed_alone_have_their_reason() -> None:
    node = Node(
        Unary("lgamma"),
        *[graph(Unary("lgamma"), TensorType((2,), torch.float32)).nodes[0].__getattribute__(f) for f in ("inputs", "outputs")],
    )
    with pytest.raises(Unsupported):
        emit.emit(Graph(node.inputs, (node,), node.outputs))


@pytest.mark.parametrize("first", [Linear(), MatMul()])
def test_a_square_matrix_may_be_multiplied_by_both_ways(first: Op) -> None:
    weight, x = torch.randn(24, 24), torch.randn(5, 24)
    with Builder() as b:
        given, matrix = b.input(TensorType((5, 24), torch.float32)), b.constant(weight)
        second = MatMul() if isinstance(first, Linear) else Linear()
        made = b.finish([first(given, matrix), second(given, matrix)])
    wanted = interpret(made, [x])
    found = ov.Core().compile_model(emit.emit(made), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x.numpy()])
    for result, want in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(result), want, rtol=1e-4, atol=1e-4)
