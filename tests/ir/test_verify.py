"""The rules of graphs, each with a planted violation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch
from hypothesis import given, settings

from tests.ir.programs import N, graphs, small
from torchsmith.errors import VerificationError
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ir.verify import verify
from torchsmith.ops.binary import Binary
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.unary import Unary

F32 = TensorType((N, 6), torch.float32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(graphs())
def test_what_builders_make_keeps_the_rules(graph: Graph) -> None:
    verify(graph, "building")


def used_too_early(graph: Graph) -> Graph:
    return replace(graph, nodes=tuple(reversed(graph.nodes)))


def output_from_nowhere(graph: Graph) -> Graph:
    return replace(graph, outputs=(Value("lost", F32),))


def name_twice(graph: Graph) -> Graph:
    return replace(graph, inputs=(*graph.inputs, Value("binary", F32)))


def wrong_type(graph: Graph) -> Graph:
    first, second, third = graph.nodes
    bad = Value("binary", F32.with_dtype(torch.float64))
    return replace(graph, nodes=(first, Node(second.op, second.inputs, (bad,)), third), outputs=(bad,))


def too_few_outputs(graph: Graph) -> Graph:
    first = graph.nodes[0]
    return replace(graph, nodes=(Node(first.op, first.inputs, ()),), outputs=graph.inputs)


def refused_types(graph: Graph) -> Graph:
    odd = Value("odd", F32.with_dtype(torch.int64))
    node = Node(Binary("add"), (graph.inputs[0], odd), (Value("sum", F32),))
    return replace(graph, inputs=(*graph.inputs, odd), nodes=(node,), outputs=node.outputs)


def constant_of_another_type(graph: Graph) -> Graph:
    (two,) = graph.constants
    return replace(graph, constants={two: torch.tensor(2, dtype=torch.int64)})


def symbol_of_no_input(graph: Graph) -> Graph:
    m = symbol("m")
    node = Node(Reshape((m, 6)), graph.inputs, (Value("y", F32.with_shape(m, 6)),))
    return replace(graph, nodes=(node,), outputs=node.outputs)


def symbol_only_in_an_expression(graph: Graph) -> Graph:
    x = Value("x", F32.with_shape(2 * N, 6))
    node = Node(Unary("relu"), (x,), (Value("y", x.type),))
    return replace(graph, inputs=(x,), nodes=(node,), outputs=node.outputs)


def foreign_function(graph: Graph) -> Graph:
    x = Value("x", F32.with_shape(N, sympy.floor(N / 2)))
    return replace(graph, inputs=(x,), nodes=(), outputs=(x,))


def symbol_without_range(graph: Graph) -> Graph:
    return replace(graph, ranges={})


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (used_too_early, "uses %binary before it is defined"),
        (output_from_nowhere, "output %lost is defined nowhere"),
        (name_twice, "two values are called %binary"),
        (wrong_type, r"has outputs \(%binary: f64\[n, 6\],\), and infer gives f32\[n, 6\]"),
        (too_few_outputs, r"has outputs \(\), and infer gives"),
        (refused_types, "which it refuses: add of"),
        (constant_of_another_type, r"constant %two: f32\[\] holds i64\[\]"),
        (symbol_of_no_input, "symbol m is no plain size of any input"),
        (symbol_only_in_an_expression, "symbol n is no plain size of any input"),
        (foreign_function, "has a size with floor in it"),
        (symbol_without_range, "symbol n has no range"),
    ],
)
def test_planted_violations_are_found(plant, sentence: str) -> None:  # type: ignore[no-untyped-def]
    verify(small(), "building")
    with pytest.raises(VerificationError, match=f"(?s)^after planting:.*{sentence}"):
        verify(plant(small()), "planting")
