"""bfloat16 by OpenVINO's own choice, where a graph has int8 in it.

OpenVINO looks for quantized layers in models of float32 only. So such a model is written in float32, and INFERENCE_PRECISION_HINT
says that what is not int8 computes in bfloat16. Places in a grid would be, too, and pixels off: where there are grids, it says
float32.
"""

from __future__ import annotations

import dataclasses

import torch

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.op import Op
from torchsmith.ops.cast import Cast
from torchsmith.ops.grid_sample import GridSample
from torchsmith.ops.promote import cast
from torchsmith.ops.quantize import Quantize

REDUCED = torch.bfloat16


def is_mixed(graph: Graph) -> bool:
    """Whether a graph computes in int8 and in bfloat16."""
    return any(isinstance(n.op, Quantize) for n in graph.nodes) and any(v.type.dtype == REDUCED for v in graph.values())


def hint(graph: Graph) -> str:
    """The INFERENCE_PRECISION_HINT of a graph, which is widened where it is mixed."""
    return "bf16" if is_mixed(graph) and not any(isinstance(n.op, GridSample) for n in graph.nodes) else "f32"


def widened(graph: Graph) -> Graph:
    """The graph with float32 in the place of bfloat16; inputs and outputs keep their types."""
    with Builder(graph.ranges) as builder:
        values: dict[Value, Value] = {v: builder.input(v.type, v.name) for v in graph.inputs}
        values = {v: cast(given, torch.float32) if v.type.dtype == REDUCED else given for v, given in values.items()}
        for value, tensor in graph.constants.items():
            values[value] = builder.constant(tensor.float() if tensor.dtype == REDUCED else tensor, value.name)
        for node in graph.nodes:
            inputs = [values[v] for v in node.inputs]
            with builder.at(node.origin):
                given = inputs[0] if _casts_nothing(node, inputs) else _wide(node.op)(*inputs)
            values.update(zip(node.outputs, given if isinstance(given, tuple) else (given,), strict=True))
        return builder.finish([cast(values[v], v.type.dtype) for v in graph.outputs])


def _casts_nothing(node: Node, inputs: list[Value]) -> bool:
    """Whether a cast gives or takes bfloat16, and is left with float32 on both sides."""
    return isinstance(node.op, Cast) and _wide(node.op) == Cast(inputs[0].type.dtype)


def _wide(op: Op) -> Op:
    changes = {name: torch.float32 for name, value in op.attributes().items() if value is REDUCED}
    return dataclasses.replace(op, **changes) if changes else op
