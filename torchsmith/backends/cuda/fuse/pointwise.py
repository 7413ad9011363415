"""Pointwise nodes that no other kernel took run together, as long as one feeds the next.

What they start from may be a concatenation, a padding, a gather: the kernel then reads from where those would have read.
"""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.fused import wrap
from torchsmith.backends.cuda.layout import VIEWS, divisible
from torchsmith.backends.cuda.program import OPERANDS, is_pointwise
from torchsmith.backends.cuda.reads import is_read
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value

MAX_NODES = 24
MAX_READS = 3  # each is loads and index arithmetic for every element


def pointwise(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    producers = {v: n for n in graph.nodes for v in n.outputs}
    owned: set[Node] = set()
    clusters: list[tuple[str, list[Node]]] = []
    for node in reversed(graph.nodes):
        if node in owned or not is_pointwise(node):
            continue
        members = {node}
        while len(members) < MAX_NODES:
            before = _next(members, node, producers, users, owned, outputs)
            if before is None:
                break
            members.add(before)
        owned.update(members)
        clusters.append(("pointwise", list(members)))
    return wrap(graph, clusters)


def _next(
    members: set[Node],
    last: Node,
    producers: dict[Value, Node],
    users: dict[Value, list[Node]],
    owned: set[Node],
    outputs: set[Value],
) -> Node | None:
    """A node that feeds the members alone and gives their shape."""
    for value in [v for n in members if is_pointwise(n) for v in n.inputs]:
        before = producers.get(value)
        if before is None or before in members or before in owned or value in outputs:
            continue
        if not all(user in members and is_pointwise(user) for user in users[value]) or not _same_shape(before, last):
            continue
        if not is_pointwise(before) and not (is_read(before) and sum(map(is_read, members)) < MAX_READS):
            continue
        after = (*members, before)
        made = {v for n in after for v in n.outputs}
        if is_read(before) and (made.intersection(before.inputs) or _is_written_in_place(before, producers)):
            continue
        # one operand more is the output
        if len({v for n in after for v in n.inputs} - made) + 1 <= OPERANDS and not any(
            is_read(n) and made.intersection(n.inputs) for n in after
        ):
            return before
    return None


def _is_written_in_place(node: Node, producers: dict[Value, Node]) -> bool:
    """Whether the parts of a concatenation are likely to be written where they belong: then there is nothing to read together."""
    if type(node.op).__name__ != "Concat":
        return False
    made = [producers.get(v) for v in node.inputs]
    sizes = [v.type.shape[node.op.dim] for v in node.inputs]  # type: ignore[attr-defined]
    return all(n is not None and type(n.op).__name__ not in VIEWS for n in made) and all(divisible(size, 8) for size in sizes)


def _same_shape(a: Node, b: Node) -> bool:
    first, second = a.outputs[0].type.shape, b.outputs[0].type.shape
    return len(first) == len(second) and all(map(same, first, second))
