"""Which ops compute in the reduced precision, as a table.

matrix: computes in the reduced dtype (with float32 accumulation), casting its inputs down.
follow: computes in the dtype that reaches it, reduced where any activation is, float32 otherwise. Normalisation, softmax and
pooling are here: they take and give the reduced dtype, and compute in float32 inside.
wide: stays in float32, because range or cancellation would cost accuracy. Samples at a grid are here, with their grids and what
computes those: in half precision, whose steps from 1024 on are whole ones, places would be pixels off.
pair: takes what reaches it, and its scale in float32; what it gives as a float is in the reduced dtype. int8 is in the graph
as such pairs, so that no op is cast to it.
"""

from __future__ import annotations

from typing import Literal

from torchsmith.ir.graph import Graph, Node
from torchsmith.ops.grid_sample import GridSample

Role = Literal["matrix", "follow", "wide", "pair"]

# By the op's class. An op that stands nowhere here and moves no data is wide.
ROLES: dict[str, Role] = {
    **dict.fromkeys(("Convolution", "ConvolutionTransposed", "Linear", "MatMul", "Attention"), "matrix"),
    **dict.fromkeys(("BatchNorm", "LayerNorm", "GroupNorm", "RmsNorm", "Softmax", "LogSoftmax"), "follow"),
    **dict.fromkeys(("MaxPool", "MaxPoolIndices", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "Resize"), "follow"),
    **dict.fromkeys(("Gelu", "LeakyRelu", "Elu", "PRelu", "Clamp", "Compare", "ArgReduce", "TopK", "Pad"), "follow"),
    **dict.fromkeys(("Quantize", "Dequantize"), "pair"),
}

# Families whose functions differ: those that follow.
FOLLOWING: dict[str, frozenset[str]] = {
    "Unary": frozenset(
        {
            *("abs", "neg", "sign", "ceil", "floor", "round", "trunc", "isnan", "isinf", "isfinite"),
            *("relu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid", "mish", "erf"),
        }
    ),
    "Binary": frozenset(["add", "sub", "mul", "maximum", "minimum", "fmax", "fmin"]),
    "Reduce": frozenset(["mean", "max", "min", "all", "any"]),
}


def role_of(node: Node) -> Role:
    kind = type(node.op).__name__
    if kind in FOLLOWING:
        return "follow" if getattr(node.op, "function") in FOLLOWING[kind] else "wide"  # noqa: B009 - only families have it
    if node.op.moves_data:
        return "follow"
    return ROLES.get(kind, "wide")


# A product that sums at most so many numbers moves places: homogeneous coordinates of three dimensions are four.
_MOST_COORDINATES = 4


def placing(graph: Graph) -> set[Node]:
    """The nodes that make grids of what matrix work and inputs give, and so are wide whatever their role is."""
    producers = {value: node for node in graph.nodes for value in node.outputs}
    pending = [node.inputs[1] for node in graph.nodes if isinstance(node.op, GridSample)]
    found = set[Node]()
    while pending:
        value = pending.pop()
        node = producers.get(value)
        if node is None or node in found or not value.type.dtype.is_floating_point or not _places(node):
            continue
        found.add(node)
        pending.extend(node.inputs)
    return found


def _places(node: Node) -> bool:
    if type(node.op).__name__ in ("Linear", "MatMul"):
        summed = node.inputs[0].type.shape[-1]
        return isinstance(summed, int) and summed <= _MOST_COORDINATES
    return role_of(node) not in ("matrix", "pair")
