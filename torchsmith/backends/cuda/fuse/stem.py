"""What is done to a picture before the first convolution (a cast, a normalisation) runs as the convolution loads it."""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.epilogue import kind_of
from torchsmith.backends.cuda.fuse.fused import wrap
from torchsmith.backends.cuda.program import is_pointwise
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value

FEW_CHANNELS = 16  # every element is loaded once for each tap over it: with more channels, what comes before is done once instead
MAX_NODES = 8


def stem(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    producers = {v: n for n in graph.nodes for v in n.outputs}
    clusters: list[tuple[str, list[Node]]] = []
    for node in graph.nodes:
        if type(node.op).__name__ != "Convolution" or kind_of(node) != "convolution":
            continue
        channels = node.inputs[0].type.shape[1]
        if not isinstance(channels, int) or channels >= FEW_CHANNELS or node.inputs[0].type.rank > 4:
            continue
        before: list[Node] = []
        current: Value | None = node.inputs[0]
        while current is not None and len(before) < MAX_NODES:
            producer = producers.get(current)
            if producer is None or current in outputs or len(users[current]) != 1 or not is_pointwise(producer):
                break
            wide = [v for v in producer.inputs if _same_shape(v, current)]
            if len(wide) != 1:
                break
            before.append(producer)
            current = wide[0]
        if before:
            clusters.append(("convolution", [*before, node]))
    return wrap(graph, clusters)


def _same_shape(a: Value, b: Value) -> bool:
    return a.type.rank == b.type.rank and all(map(same, a.type.shape, b.type.shape))
