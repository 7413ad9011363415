"""What a fused node is made of, as the templates see it: one main op, what comes before its first input, what comes after."""

from __future__ import annotations

from dataclasses import dataclass

from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.ir.graph import Node, Value


@dataclass(frozen=True)
class Parts:
    """main: the node whose op gives the kind. before: pointwise nodes that lead to its inputs.

    after: those that follow it, and what dequantizes their operands.
    """

    main: Node
    before: tuple[Node, ...]
    after: tuple[Node, ...]
    outputs: tuple[Value, ...]


def parts_of(node: Node, *mains: str) -> Parts:
    """Split a node, fused or not, at its only op of the classes `mains`."""
    nodes = node.op.body.nodes if isinstance(node.op, Fused) else (node,)
    found = [n for n in nodes if type(n.op).__name__ in mains]
    assert len(found) == 1, f"{node} has {len(found)} of {mains}"
    (main,) = found
    reached = set(main.outputs)
    following = set[Node]()
    for n in nodes:
        if n is not main and reached.intersection(n.inputs):
            reached.update(n.outputs)
            following.add(n)
    used = {v for n in nodes if n not in following for v in n.inputs}
    following.update(n for n in nodes if type(n.op).__name__ == "Dequantize" and not used.intersection(n.outputs))
    after = tuple(n for n in nodes if n in following)
    return Parts(main, tuple(n for n in nodes if n is not main and n not in following), after, node.outputs)
