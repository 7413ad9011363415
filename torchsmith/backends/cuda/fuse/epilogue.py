"""Pointwise nodes that follow a kernel's main op run in its registers: bias, activation, residual, scale, cast."""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.fused import Fused, wrap
from torchsmith.backends.cuda.program import is_pointwise
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value

MAX_NODES = 16


def epilogue(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    owned: set[Node] = set()
    clusters: list[tuple[str, list[Node]]] = []
    # from the last: where two products are added, the later one has the other's result at hand
    for node in reversed(graph.nodes):
        kind = kind_of(node)
        if kind is None or node in owned:
            continue
        members = [node]
        current = node.outputs[-1] if len(node.outputs) == 1 else None
        while current is not None and current not in outputs and len(members) < MAX_NODES:
            after = next_pointwise(current, users[current], owned)
            if after is None:
                break
            members.append(after)
            current = after.outputs[0]
        owned.update(members)
        if len(members) > 1 or not isinstance(node.op, Fused):
            clusters.append((kind, members))
    return wrap(graph, clusters)


def next_pointwise(value: Value, users: list[Node], owned: set[Node]) -> Node | None:
    """The only user of a value, if it is pointwise and gives the value's shape."""
    if not users or any(user is not users[0] for user in users):
        return None
    (user, *_) = users
    if user in owned or not is_pointwise(user):
        return None
    shape = user.outputs[0].type.shape
    fits = len(shape) == value.type.rank and all(map(same, shape, value.type.shape))
    return user if fits else None


def kind_of(node: Node) -> str | None:
    """The kind of fused node that a main op gives; None for ops without templates."""
    op, name = node.op, type(node.op).__name__
    if isinstance(op, Fused):
        return op.kind
    if name in ("Linear", "MatMul"):
        return "gemm"
    if name == "Convolution":
        return convolution_kind(node)
    return MAINS.get(name)


MAINS = {
    **dict.fromkeys(("LayerNorm", "RmsNorm", "GroupNorm"), "norm"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(("MaxPool", "AvgPool", "AdaptiveAvgPool"), "pool"),
    "Reduce": "reduce",
    "Attention": "attention",
}


def convolution_kind(node: Node) -> str:
    op, (x, weight) = node.op, node.inputs[:2]
    groups, channels = op.groups, x.type.shape[1]  # type: ignore[attr-defined]
    if groups > 1 and same(channels, groups) and same(weight.type.shape[0], groups):
        return "depthwise"
    pointwise = set(op.stride) == {1} and groups == 1 and set(weight.type.shape[2:]) == {1} and not any(map(any, op.padding))  # type: ignore[attr-defined]
    return "gemm" if pointwise and x.type.rank == 4 else "convolution"
