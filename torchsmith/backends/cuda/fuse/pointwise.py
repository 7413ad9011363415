"""Pointwise nodes that no other kernel took run together, as long as one feeds the next."""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.fused import wrap
from torchsmith.backends.cuda.program import OPERANDS, is_pointwise
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node

MAX_NODES = 24


def pointwise(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    producers = {v: n for n in graph.nodes for v in n.outputs}
    owned: set[Node] = set()
    clusters: list[tuple[str, list[Node]]] = []
    for node in reversed(graph.nodes):
        if node in owned or not is_pointwise(node):
            continue
        members = {node}
        grown = True
        while grown and len(members) < MAX_NODES:
            grown = False
            for value in [v for n in members for v in n.inputs]:
                before = producers.get(value)
                if before is None or before in members or before in owned or not is_pointwise(before) or value in outputs:
                    continue
                if not all(user in members for user in users[value]) or not _same_shape(before, node):
                    continue
                operands = {v for n in (*members, before) for v in n.inputs} - {v for n in (*members, before) for v in n.outputs}
                if len(operands) > OPERANDS:
                    continue
                members.add(before)
                grown = True
                break
        owned.update(members)
        clusters.append(("pointwise", list(members)))
    return wrap(graph, clusters)


def _same_shape(a: Node, b: Node) -> bool:
    first, second = a.outputs[0].type.shape, b.outputs[0].type.shape
    return len(first) == len(second) and all(map(same, first, second))
