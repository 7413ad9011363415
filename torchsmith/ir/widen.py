"""A graph in float64: what its results are measured against."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.op import Op


def widened(graph: Graph) -> Graph:
    """The same graph with every floating value float64: inputs, constants, and the dtypes that ops name."""
    with Builder(graph.ranges) as builder:
        values: dict[Value, Value] = {v: builder.input(v.type.with_dtype(wide(v.type.dtype)), v.name) for v in graph.inputs}
        values.update({v: builder.constant(t.to(wide(t.dtype)), v.name) for v, t in graph.constants.items()})
        for node in graph.nodes:
            with builder.at(node.origin):
                given = widened_op(node.op)(*(values[v] for v in node.inputs))
            values.update(zip(node.outputs, given if isinstance(given, tuple) else (given,), strict=True))
        return builder.finish([values[v] for v in graph.outputs])


def widened_op(op: Op) -> Op:
    changed: dict[str, Any] = {}
    for name, value in op.attributes().items():
        if isinstance(value, torch.dtype):
            changed[name] = wide(value)
        elif isinstance(value, Graph):
            changed[name] = widened(value)
    return dataclasses.replace(op, **changed) if changed else op


def wide(dtype: torch.dtype) -> torch.dtype:
    """Floats of eight bits stay: like int8, they say which numbers there are, and not how exactly one computes."""
    return torch.float64 if dtype.is_floating_point and dtype.itemsize > 1 else dtype
