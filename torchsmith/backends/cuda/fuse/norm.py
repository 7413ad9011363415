"""What comes before a norm, a softmax or a reduction runs as it loads: sums of residuals, scales, masks, casts, rows of a table.

A sum that is also wanted elsewhere becomes a second output of the norm that takes it.
"""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.epilogue import kind_of, operands
from torchsmith.backends.cuda.fuse.fused import Fused, flattened, wrap
from torchsmith.backends.cuda.program import OPERANDS, is_pointwise
from torchsmith.backends.cuda.reads import is_read
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value

KINDS = frozenset({"norm", "softmax", "reduce"})
MAINS = frozenset({"LayerNorm", "RmsNorm", "GroupNorm", "Softmax", "LogSoftmax", "Reduce"})
MAX_NODES = 16


def norm(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    producers = {v: n for n in graph.nodes for v in n.outputs}
    owned: set[Node] = set()
    clusters: list[tuple[str, list[Node]]] = []
    for node in reversed(graph.nodes):
        kind = kind_of(node)
        if kind not in KINDS or node in owned:
            continue
        x = main_input(node)
        members = [node]
        grown = True
        while grown and len(members) < MAX_NODES:
            grown = False
            for value in [v for n in members for v in n.inputs]:
                before = producers.get(value)
                if before is None or before in members or before in owned or not fits(before, node, x, kind):
                    continue
                alone = value not in outputs and all(user in members for user in users[value])
                # what the norm takes besides is constant: else it might be made from the sum, outside
                second = kind == "norm" and value is x and is_sum(before) and taken(members) <= {x, *graph.constants}
                if (alone or second) and operands(flattened([*members, before])) <= OPERANDS - 1:
                    members.append(before)
                    grown = True
                    break
        if len(members) > 1:
            owned.update(members)
            clusters.append((kind, members))
    return wrap(graph, clusters)


def main_input(node: Node) -> Value:
    """What the norm, softmax or reduction in a node is of."""
    if not isinstance(node.op, Fused):
        return node.inputs[0]
    body = node.op.body
    main = next(n for n in body.nodes if type(n.op).__name__ in MAINS)
    return dict(zip(body.inputs, node.inputs, strict=True)).get(main.inputs[0], main.inputs[0])


def fits(before: Node, node: Node, x: Value, kind: str) -> bool:
    """Whether a node's result has the shape that is loaded, element by element."""
    given = before.outputs[0].type.shape
    if len(given) != x.type.rank or not all(map(same, given, x.type.shape)):
        return False
    if type(before.op).__name__ == "Gather":
        return kind == "norm" and before.op.dim == 0 and _counts_rows(before, node)  # type: ignore[attr-defined]
    if type(before.op).__name__ == "Concat":
        return kind == "norm" and is_read(before)
    return not isinstance(before.op, Fused) and is_pointwise(before)


def _counts_rows(gather: Node, node: Node) -> bool:
    """Whether the table's rows are the norm's."""
    nodes = node.op.body.nodes if isinstance(node.op, Fused) else (node,)
    dims = next((n.op.dims for n in nodes if type(n.op).__name__ in ("LayerNorm", "RmsNorm")), None)  # type: ignore[attr-defined]
    return dims is not None and gather.inputs[0].type.rank - 1 == dims


def is_sum(node: Node) -> bool:
    """Whether writing the node's result beside the norm's saves a kernel that would read as much again."""
    return str(node.op) in ("Binary[add]", "Binary[sub]")


def taken(members: list[Node]) -> set[Value]:
    """What the nodes take from outside."""
    return {v for n in members for v in n.inputs} - {v for n in members for v in n.outputs}
