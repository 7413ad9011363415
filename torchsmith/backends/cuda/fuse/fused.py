"""Several nodes as one kernel's work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType


@dataclass(frozen=True, eq=False)
class Fused(Op):
    """A subgraph that one tactic runs. kind: which tactics may take it. body: what it means; it has no constants of its own."""

    kind: str
    body: Graph

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        for given, value in zip(inputs, self.body.inputs, strict=True):
            assert given.matches(value.type), f"{self.kind} was fused for {value}, and is given {given}"
        return tuple(v.type for v in self.body.outputs)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(interpret(self.body, inputs))

    def symbols(self) -> set[str]:
        return set(self.body.ranges)

    def bound(self, env: dict[str, int]) -> Fused:
        return replace(self, body=bind_graph(self.body, env)) if self.body.ranges else self

    def __str__(self) -> str:
        return f"Fused[{self.kind}]({', '.join(str(n.op) for n in self.body.nodes)})"


def bind_graph(graph: Graph, env: dict[str, int]) -> Graph:
    """The graph with its symbols replaced by numbers, which do not need to stand in the inputs' shapes."""
    values = {v: Value(v.name, v.type.with_shape(*bind(v.type.shape, env))) for v in graph.values()}
    nodes = [
        Node(n.op.bound(env), tuple(values[v] for v in n.inputs), tuple(values[v] for v in n.outputs), n.origin)
        for n in graph.nodes
    ]
    constants = {values[v]: t for v, t in graph.constants.items()}
    return Graph(tuple(values[v] for v in graph.inputs), tuple(nodes), tuple(values[v] for v in graph.outputs), constants)


def flattened(nodes: Iterable[Node]) -> list[Node]:
    """The nodes with every fused one's body in its place."""
    found: list[Node] = []
    for node in nodes:
        if not isinstance(node.op, Fused):
            found.append(node)
            continue
        names = dict(zip(node.op.body.inputs, node.inputs, strict=True)) | dict(
            zip(node.op.body.outputs, node.outputs, strict=True)
        )
        inner = [
            Node(n.op, tuple(names.get(v, v) for v in n.inputs), tuple(names.get(v, v) for v in n.outputs), n.origin)
            for n in node.op.body.nodes
        ]
        found.extend(flattened(inner))
    return found


def wrap(graph: Graph, clusters: Sequence[tuple[str, Sequence[Node]]], nested: bool = False) -> Graph:
    """Put one fused node in the place of each cluster: (kind, its nodes). Clusters are disjoint; none feeds itself from outside.

    nested: fused nodes in a cluster stay nodes of the new body, so that a builder may take it apart into them; else their
    bodies take their places.
    """
    owner = {node: index for index, (_, nodes) in enumerate(clusters) for node in nodes}
    users = graph.users()
    outputs = set(graph.outputs)
    made: dict[int, Node] = {}
    for index, (kind, given) in enumerate(clusters):
        members = [n for n in graph.nodes if owner.get(n) == index]
        assert len(members) == len(given), f"a cluster of {kind} has nodes that are not in the graph, or in two clusters"
        inside = {v for n in members for v in n.outputs}
        inputs = tuple(dict.fromkeys(v for n in members for v in n.inputs if v not in inside))
        given_out = tuple(
            v for n in members for v in n.outputs if v in outputs or any(owner.get(user) != index for user in users[v])
        )
        flat = flattened(members)
        body = Graph(inputs, tuple(members if nested else flat), given_out, {}, graph.ranges)
        origin = next((n.origin for n in flat if type(n.op).__name__ in _MAIN), flat[0].origin)
        made[index] = Node(Fused(kind, body), inputs, given_out, origin)
    nodes, placed = list[Node](), set[int]()
    for node in graph.nodes:
        if node not in owner:
            nodes.append(node)
        elif owner[node] not in placed:
            placed.add(owner[node])
            nodes.append(made[owner[node]])
    return replace(graph, nodes=tuple(in_order(graph, nodes)))


_MAIN = frozenset(
    {
        *("Convolution", "Linear", "MatMul", "Attention", "LayerNorm", "RmsNorm", "GroupNorm", "Softmax"),
        *("IntegerLinear", "IntegerConvolution", "Float8Linear", "Float8Attention"),
    }
)


def in_order(graph: Graph, nodes: Sequence[Node]) -> list[Node]:
    """The nodes so that each stands after what it needs, otherwise as they are."""
    known = {*graph.inputs, *graph.constants}
    waiting, ordered = list(nodes), list[Node]()
    while waiting:
        ready = [n for n in waiting if all(v in known for v in n.inputs)]
        first = ready[0] if ready else None
        assert first is not None, f"a fusion made a cycle: {waiting[:3]}"
        # as many as possible in one sweep, so that the order stays close to what it was
        later = []
        for node in waiting:
            if all(v in known for v in node.inputs):
                ordered.append(node)
                known.update(node.outputs)
            else:
                later.append(node)
        waiting = later
    return ordered
