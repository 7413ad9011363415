"""The clean-up that only shows in our own IR: ops that undo or continue the one before them."""

from __future__ import annotations

from collections.abc import Sequence

from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.rewrite import Rule, Seen, rewrite
from torchsmith.lower.remove_noops import holds
from torchsmith.ops.cast import Cast
from torchsmith.ops.permute import Permute, permuted
from torchsmith.ops.reshape import Reshape, reshaped


def tidy(graph: Graph) -> Graph:
    """The same results, exactly. For a graph that `convert` or a precision policy made."""
    return rewrite(graph, RULES)


def _before(node: Node, kind: type, seen: Seen) -> tuple[Node, Value] | None:
    """The node of the same kind that gives a node its only input, and that node's own input."""
    before = seen.producer(node.inputs[0]) if isinstance(node.op, kind) else None
    return (before, before.inputs[0]) if before is not None and isinstance(before.op, kind) else None


def reshapes(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A reshape of a reshape is one reshape, or none."""
    found = _before(node, Reshape, seen)
    return None if found is None else [reshaped(found[1], node.outputs[0].type.shape)]


def permutes(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A permutation of a permutation is one permutation, or none."""
    found = _before(node, Permute, seen)
    if found is None:
        return None
    before, x = found
    assert isinstance(before.op, Permute) and isinstance(node.op, Permute)
    return [permuted(x, [before.op.dims[axis] for axis in node.op.dims])]


def casts(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A cast by way of a dtype that holds every number of the first is a direct cast, or none."""
    found = _before(node, Cast, seen)
    if found is None:
        return None
    before, x = found
    assert isinstance(node.op, Cast)
    if not holds(before.outputs[0].type.dtype, x.type.dtype):
        return None
    return [x if x.type.dtype == node.op.dtype else Cast(node.op.dtype)(x)]


RULES: tuple[Rule, ...] = (reshapes, permutes, casts)
