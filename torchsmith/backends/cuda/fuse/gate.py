"""A scale per picture and channel before a 1×1 convolution (squeeze-and-excite) is applied as the convolution loads."""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.epilogue import dequantized, kind_of
from torchsmith.backends.cuda.fuse.fused import wrap
from torchsmith.ir.dim import Shape, same
from torchsmith.ir.graph import Graph, Node


def gate(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    producers = {v: n for n in graph.nodes for v in n.outputs}
    clusters: list[tuple[str, list[Node]]] = []
    for node in graph.nodes:
        if kind_of(node) != "gemm" or type(node.op).__name__ != "Convolution":
            continue
        x = node.inputs[0]
        scaled = producers.get(x)
        if scaled is None or x in outputs or len(users[x]) != 1 or str(scaled.op) != "Binary[mul]":
            continue
        wide = [v for v in scaled.inputs if v.type.shape == x.type.shape]
        narrow = [v for v in scaled.inputs if v.type.rank == x.type.rank and _is_gate(v.type.shape, x.type.shape)]
        if len(wide) == 1 and len(narrow) == 1:
            before = dequantized(wide[0], graph, producers, users)
            clusters.append(("gemm", [*([before] if before else []), scaled, node]))
    return wrap(graph, clusters)


def _is_gate(shape: Shape, x: Shape) -> bool:
    """Whether there is one for each channel: where the product loads none, past the last, it then loads no gate either."""
    return all(same(n, 1) for n in shape[2:]) and same(shape[1], x[1]) and not same(x[1], 1)
