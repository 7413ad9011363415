"""Squeeze-and-excite: mean over the pixels, two 1×1 convolutions with activations; with the depthwise convolution before it.

The mean of a depthwise convolution's result is taken from its registers. What the gate scales is left to `gate.py`.
"""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.epilogue import MAX_NODES, convolution_kind, dequantized, next_pointwise
from torchsmith.backends.cuda.fuse.fused import wrap
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value


def squeeze_excite(graph: Graph) -> Graph:
    users = graph.users()
    producers = {v: n for n in graph.nodes for v in n.outputs}
    depthwise: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if type(node.op).__name__ == "Convolution" and node.outputs[0].type.rank == 4 and convolution_kind(node) == "depthwise":
            given = dequantized(node.inputs[0], graph, producers, users)
            chain = [node, *_followers(graph, users, node.outputs[0])]
            depthwise[chain[-1].outputs[0]] = [*([given] if given else []), *chain]
    clusters: list[tuple[str, list[Node]]] = []
    for node in graph.nodes:
        if layers := _layers(graph, users, node):
            numbers = dequantized(node.inputs[0], graph, producers, users)  # the mean is of what was rounded to eight bits
            before = depthwise.pop(numbers.inputs[0] if numbers else node.inputs[0], [])
            if before and numbers:
                before.append(numbers)
            clusters.append(("depthwise_gate" if before else "squeeze_excite", [*before, node, *layers]))
    return wrap(graph, clusters)


def _layers(graph: Graph, users: dict[Value, list[Node]], mean: Node) -> list[Node]:
    """The nodes after the mean, up to the gate; none where this mean is for something else."""
    if str(mean.op) != "Reduce[mean](dims=(2, 3), keepdim=True)" or mean.inputs[0].type.rank != 4:
        return []
    members, value = list[Node](), mean.outputs[0]
    if len(users[value]) == 1 and type(users[value][0].op).__name__ == "Cast" and value not in graph.outputs:
        members.append(users[value][0])
        value = members[-1].outputs[0]
    for _ in range(2):
        if value in graph.outputs or len(users[value]) != 1 or not _is_layer(graph, users[value][0], value):
            return []
        members.append(users[value][0])
        # with constants only: another operand may need what the cluster gives
        for follower in _followers(graph, users, members[-1].outputs[0]):
            if any(v not in graph.constants and v is not members[-1].outputs[0] for v in follower.inputs):
                break
            members.append(follower)
        value = members[-1].outputs[0]
    return members if same(value.type.shape[1], mean.inputs[0].type.shape[1]) else []


def _is_layer(graph: Graph, node: Node, value: Value) -> bool:
    """Whether the node is a 1×1 convolution of the value."""
    if type(node.op).__name__ != "Convolution" or node.inputs[0] is not value:
        return False
    op, kernel = node.op, node.inputs[1].type.shape[2:]
    known = all(v in graph.constants for v in node.inputs[1:])
    return known and op.groups == 1 and all(same(n, 1) for n in kernel) and not any(map(any, op.padding))  # type: ignore[attr-defined]


def _followers(graph: Graph, users: dict[Value, list[Node]], value: Value) -> list[Node]:
    """The pointwise nodes that a kernel giving the value may take along."""
    found: list[Node] = []
    while value not in graph.outputs and len(found) < MAX_NODES:
        after = next_pointwise(value, users[value], set())
        if after is None:
            break
        found.append(after)
        value = after.outputs[0]
    return found
