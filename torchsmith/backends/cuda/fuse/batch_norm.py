"""A batch norm that no convolution took is a product and a sum per channel, which other kernels take in.

They are in float32, as PyTorch computes them: in float16 the constants would lose digits.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast


def batch_norm(graph: Graph) -> Graph:
    made = dict(graph.constants)
    nodes = list[Node]()
    for node in graph.nodes:
        if type(node.op).__name__ != "BatchNorm" or not all(v in graph.constants for v in node.inputs[1:]):
            nodes.append(node)
            continue
        x, (output,) = node.inputs[0], node.outputs
        wide = torch.float64 if x.type.dtype == torch.float64 else torch.float32
        weight, bias, mean, var = (graph.constants[v].double() for v in node.inputs[1:])
        scale = weight / torch.sqrt(var + node.op.eps)  # type: ignore[attr-defined]
        channels = (x.type.shape[1], *[1] * (x.type.rank - 2))
        values = {name: Value(f"{output.name}.{name}", TensorType(channels, wide)) for name in ("scale", "shift")}
        made[values["scale"]] = scale.to(wide).reshape(-1, *channels[1:])
        made[values["shift"]] = (bias - mean * scale).to(wide).reshape(-1, *channels[1:])
        steps = [Value(f"{output.name}.{name}", x.type.with_dtype(wide)) for name in ("wide", "scaled", "shifted")]
        nodes += [
            Node(Cast(wide), (x,), (steps[0],), node.origin),
            Node(Binary("mul"), (steps[0], values["scale"]), (steps[1],), node.origin),
            Node(Binary("add"), (steps[1], values["shift"]), (steps[2],), node.origin),
            Node(Cast(output.type.dtype), (steps[2],), (output,), node.origin),
        ]
    return replace(graph, nodes=tuple(nodes), constants=made)
