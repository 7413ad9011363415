"""What a library's kernel leaves to do: the pointwise nodes after the main op, as one launch of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import View
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary

POINTWISE = "pointwise"  # the kind, and the template's name


def plan_after(e: Emission, result: Value, nodes: Sequence[Node], outputs: Sequence[Value]) -> tuple[Emission, Any] | None:
    """How `nodes` run on the main op's `result`, as our pointwise template takes them; None where there are none.

    Raises Unsupported where the template does not take them.
    """
    if not nodes:
        return None
    if POINTWISE not in tactics.ORDER:
        raise Unsupported("what follows needs the pointwise template")
    inside = {v for n in nodes for v in n.outputs}
    inputs = tuple(dict.fromkeys(v for n in nodes for v in n.inputs if v not in inside))
    assert result in inputs, f"{result} does not reach {nodes}"
    node = Node(Fused(POINTWISE, Graph(inputs, tuple(nodes), tuple(outputs))), inputs, tuple(outputs), e.node.origin)
    inner = Emission(node, e.views, e._packed)
    return inner, tactics.template(POINTWISE).configs(inner)[0]


def emit_after(e: Emission, planned: tuple[Emission, Any] | None) -> None:
    if planned is None:
        return
    inner, config = planned
    tactics.template(POINTWISE).emit(inner, config)
    e.steps += inner.steps
    e.views.update(inner.views)


def plus_bias(e: Emission, result: Value, bias: Value, axis: int) -> tuple[Value, Node]:
    """A node that adds a bias along `axis` to the main op's result. Its value has the result's place in no memory."""
    rank = result.type.rank
    shape = tuple(bias.type.shape[0] if d == axis else 1 for d in range(rank))
    spread = Value(f"{bias.name}.spread{axis}of{rank}", TensorType(shape, bias.type.dtype))
    given = e.view(bias)
    e.views[spread] = View(given.root, tuple(given.strides[0] if d == axis else 0 for d in range(rank)), given.offset)
    biased = Value(f"{result.name}.biased", result.type)
    e.views[biased] = View(biased, e.view(result).strides)
    return biased, Node(Binary("add"), (result, spread), (biased,), e.node.origin)


def renamed(nodes: Sequence[Node], old: Value, new: Value) -> list[Node]:
    """The nodes with `new` in the place of `old` among their inputs."""
    return [Node(n.op, tuple(new if v is old else v for v in n.inputs), n.outputs, n.origin) for n in nodes]
