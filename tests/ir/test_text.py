"""Graphs as text for people, and as bytes that give the same graph back."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.programs import EveryKind, N, attributes, graphs, small
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.text import from_bytes, to_bytes, to_text
from torchsmith.ir.types import TensorType
from torchsmith.ir.verify import verify

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def test_text() -> None:
    assert to_text(small()).splitlines() == [
        "graph(%x: f32[n, 6])",
        "  where 1 <= n <= 16",
        "  %unary: f32[n, 6] = Unary[sigmoid](%x)  # aten.mul.Tensor at net.py:7",
        "  %binary: f32[n, 6] = Binary[mul](%unary, %two)  # aten.mul.Tensor at net.py:7",
        "  %reduce: f32[] = Reduce[sum](dims=(0, 1), keepdim=False)(%binary)",
        "  return %binary, %reduce",
    ]
    assert str(small()) == to_text(small())


@QUICK
@given(graphs())
def test_bytes_give_the_same_graph_back(graph: Graph) -> None:
    read = from_bytes(to_bytes(graph))
    verify(read, "from_bytes")
    assert to_text(read) == to_text(graph) and read.ranges == graph.ranges
    assert [node.op for node in read.nodes] == [node.op for node in graph.nodes]
    assert [value.type for value in read.values()] == [value.type for value in graph.values()] or len(graph.constants) > 1
    x = torch.randn(3, 2, 3)
    for a, b in zip(interpret(read, [x]), interpret(graph, [x]), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@QUICK
@given(attributes())
def test_every_kind_of_attribute_comes_back(op: EveryKind) -> None:
    with Builder({"n": (1, None)}) as builder:
        y = op(builder.input(TensorType((N,), torch.float32)))
    read = from_bytes(to_bytes(builder.finish([y])))
    found = read.nodes[0].op
    assert found == op and list(map(type, found.attributes().values())) == list(map(type, op.attributes().values()))
    assert read.ranges == {"n": (1, None)}


@pytest.mark.parametrize("number", [math.inf, -math.inf, -0.0, 1e-320, 0.1])
def test_odd_numbers_come_back(number: float) -> None:
    with Builder() as builder:
        y = EveryKind(0, number, True, "", torch.bool, 1, (number, (number,)))(builder.input(TensorType((), torch.float32)))
    found = from_bytes(to_bytes(builder.finish([y]))).nodes[0].op
    assert isinstance(found, EveryKind)
    assert [math.copysign(1, n) for n in (found.real, found.nested[0])] == [math.copysign(1, number)] * 2
    assert found.real == number and found.nested == (number, (number,))


@pytest.mark.parametrize(
    "tensor", [torch.zeros(0, 3), torch.tensor(True), torch.arange(6).view(2, 3).t(), torch.tensor([1.5], dtype=torch.bfloat16)]
)
def test_constants_of_every_shape_and_layout(tensor: torch.Tensor) -> None:
    with Builder() as builder:
        c = builder.constant(tensor)
    (read,) = interpret(from_bytes(to_bytes(builder.finish([c]))), [])
    assert read.dtype == tensor.dtype and torch.equal(read, tensor)


def altered(**changes: object) -> bytes:
    """The small graph's bytes with a part of the JSON replaced."""
    data = to_bytes(small())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["graph"] = json.dumps({**json.loads(header["__metadata__"]["graph"]), **changes})
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no graph",
        to_bytes(small())[:-3],
        to_bytes(small())[:100],
        altered(nodes=[{"op": "Rm", "attributes": {}, "inputs": [], "outputs": [], "origin": ""}]),
        altered(nodes=[{"op": "Unary", "attributes": {"made_up": 1}, "inputs": ["x"], "outputs": [], "origin": ""}]),
        altered(nodes=[{"op": "Unary"}]),
        altered(outputs=["nothing"]),
        altered(inputs=[["x", ["__import__('os')"], "float32"]]),
        altered(inputs=[["x", [3], "load"]]),
        altered(inputs=3),
    ],
)
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(ValueError):
        from_bytes(data)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=64), st.integers(0, 400))
def test_damage_is_an_error_or_a_graph(noise: bytes, at: int) -> None:
    data = to_bytes(small())
    try:
        read = from_bytes(data[:at] + noise + data[at + len(noise) :])
    except ValueError:
        return
    assert isinstance(read, Graph)
