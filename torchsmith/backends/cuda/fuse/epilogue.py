"""Pointwise nodes that follow a kernel's main op run in its registers: bias, activation, residual, scale, cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchsmith.backends.cuda.fuse.fused import Fused, wrap
from torchsmith.backends.cuda.program import OPERANDS, is_pointwise
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value

MAX_NODES = 16
LOADS = frozenset({"norm", "softmax", "reduce"})
OUTPUTS = 2  # of what follows a norm
MAX_REGION = 6  # between a value that is used twice and where its uses meet again
SCALED = frozenset({"Quantize", "Dequantize"})
LOADING = frozenset(
    {"gemm", "gemm_int8", "gemm_float8", "convolution", "convolution_int8", "depthwise"}
)  # kinds whose epilogues may start with what they load


def epilogue(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    producers = {v: n for n in graph.nodes for v in n.outputs}
    order = {node: index for index, node in enumerate(graph.nodes)}
    owned: set[Node] = set()
    clusters: list[tuple[str, list[Node]]] = []
    # from the last: where two products are added, the later one has the other's result at hand
    for node in reversed(graph.nodes):
        kind = kind_of(node)
        if kind is None or node in owned:
            continue
        members = [node]
        current = node.outputs[-1] if len(node.outputs) == 1 else None
        while current is not None:
            region = following(current, users, outputs, owned, order)
            if not region or len(members) + len(region) > MAX_NODES or operands([*members, *region]) > OPERANDS:
                break
            members += region
            current = region[-1].outputs[0]
        if len(members) > 1 and is_left_to_load(members[-1], users, outputs):
            members.pop()
        elif kind == "norm" and current is not None:
            members += beside(current, users, owned, graph)
        if kind == "depthwise" and (before := dequantized(node.inputs[0], graph, producers, users)) is not None:
            members.append(before)
        if kind in LOADING:
            members += dequantizing(members, graph.nodes, users, outputs, owned)
        owned.update(members)
        if len(members) > 1 or not isinstance(node.op, Fused):
            clusters.append((kind, members))
    return wrap(graph, clusters)


def following(
    value: Value, users: Mapping[Value, Sequence[Node]], outputs: set[Value], owned: set[Node], order: Mapping[Node, int]
) -> list[Node]:
    """The fewest pointwise nodes of the value's shape after which only the last one's result is used elsewhere; none: [].

    As everything inside leads to that one result, nothing that the nodes take besides can depend on any of them.
    """
    region: list[Node] = []
    inside = [value]
    while len(region) < MAX_REGION:
        waiting = {user for v in inside for user in users[v] if user not in region}
        if not waiting or any(v in outputs for v in inside):
            return []
        after = min(waiting, key=lambda user: order[user])
        if after in owned or len(after.outputs) != 1 or not is_pointwise(after) or not alike(after.outputs[0], value):
            return []
        region.append(after)
        inside.append(after.outputs[0])
        if all(user in region for v in inside[:-1] for user in users[v]):
            return region
    return []


def is_left_to_load(node: Node, users: Mapping[Value, Sequence[Node]], outputs: set[Value]) -> bool:
    """Whether a node makes floats of integers for one user, whose kernel does so as it loads them (see `norm.py`)."""
    if type(node.op).__name__ != "Dequantize" or outputs.intersection(node.outputs):
        return False
    after = users[node.outputs[0]]
    return len(after) == 1 and kind_of(after[0]) in LOADS and after[0].inputs[0] is node.outputs[0]


def beside(value: Value, users: Mapping[Value, Sequence[Node]], owned: set[Node], graph: Graph) -> list[Node]:
    """What makes a value of another dtype for others, by constants alone, where the kernel that gives it can write both."""
    found = [chain for user in dict.fromkeys(users[value]) if (chain := _narrowing(value, user, users, owned, graph))]
    stays = value in graph.outputs or len(found) < len(set(users[value]))
    return [node for chain in found for node in chain] if len(found) + stays <= OUTPUTS else []


def _narrowing(value: Value, user: Node, users: Mapping[Value, Sequence[Node]], owned: set[Node], graph: Graph) -> list[Node]:
    """A cast of the value, or what leads to a quantization; none where the user is anything else."""
    chain, current, after = list[Node](), value, next_pointwise(value, [user], owned)
    while after is not None and all(v is current or v in graph.constants for v in after.inputs):
        chain.append(after)
        current = after.outputs[0]
        if type(after.op).__name__ == "Quantize":
            return chain
        if current in graph.outputs or len(chain) == MAX_REGION:
            break
        after = next_pointwise(current, users[current], owned)
    return chain[:1] if chain and type(chain[0].op).__name__ == "Cast" else []


def dequantizing(
    members: Sequence[Node], nodes: Sequence[Node], users: Mapping[Value, Sequence[Node]], outputs: set[Value], owned: set[Node]
) -> list[Node]:
    """What dequantizes operands of the members after the first, for them alone: they load the integers."""
    wanted = {v for n in members[1:] for v in n.inputs}
    return [
        n
        for n in nodes
        if type(n.op).__name__ == "Dequantize"
        and n not in owned
        and n not in members
        and n.outputs[0] in wanted - outputs
        and n.outputs[0] not in members[0].inputs
        and is_pointwise(n)
        and all(user in members for user in users[n.outputs[0]])
    ]


def dequantized(value: Value, graph: Graph, producers: Mapping[Value, Node], users: Mapping[Value, Sequence[Node]]) -> Node | None:
    """What makes a value of integers, by one scale, for its only user; None where nothing does."""
    node = producers.get(value)
    if node is None or type(node.op).__name__ != "Dequantize" or value in graph.outputs or len(set(users[value])) != 1:
        return None
    known = node.op.axis is None and all(v in graph.constants for v in node.inputs[1:])  # type: ignore[attr-defined]
    return node if known else None


def next_pointwise(value: Value, users: Sequence[Node], owned: set[Node]) -> Node | None:
    """The only user of a value, if it is pointwise and gives the value's shape."""
    if not users or any(user is not users[0] for user in users):
        return None
    user = users[0]
    return user if user not in owned and is_pointwise(user) and alike(user.outputs[0], value) else None


def alike(a: Value, b: Value) -> bool:
    return a.type.rank == b.type.rank and all(map(same, a.type.shape, b.type.shape))


def operands(nodes: Sequence[Node]) -> int:
    """How many values the nodes take from outside. Scales and zero points are written into the text."""
    given = {v for n in nodes for v in (n.inputs[:1] if type(n.op).__name__ in SCALED else n.inputs)}
    return len(given - {v for n in nodes for v in n.outputs})


def kind_of(node: Node) -> str | None:
    """The kind of fused node that a main op gives; None for ops without templates."""
    op, name = node.op, type(node.op).__name__
    if isinstance(op, Fused):
        return op.kind
    if name in ("Linear", "MatMul"):
        return "gemm"
    if name == "IntegerLinear":
        return "gemm_int8"
    if name == "Float8Linear":
        return "gemm_float8"
    if name == "IntegerConvolution":
        return "gemm_int8" if reads_pixels_alone(node) else "convolution_int8"
    if name == "Convolution":
        return convolution_kind(node)
    return MAINS.get(name)


MAINS = {
    **dict.fromkeys(("LayerNorm", "RmsNorm", "GroupNorm"), "norm"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "softmax"),
    **dict.fromkeys(("MaxPool", "AvgPool", "AdaptiveAvgPool"), "pool"),
    "Reduce": "reduce",
    "Attention": "attention",
    "Float8Attention": "attention_float8",
}


def convolution_kind(node: Node) -> str:
    op, (x, weight) = node.op, node.inputs[:2]
    groups, channels = op.groups, x.type.shape[1]  # type: ignore[attr-defined]
    if groups > 1 and same(channels, groups) and same(weight.type.shape[0], groups):
        return "depthwise"
    pointwise = set(op.stride) == {1} and reads_pixels_alone(node)  # type: ignore[attr-defined]
    return "gemm" if pointwise and x.type.rank == 4 else "convolution"


def reads_pixels_alone(node: Node) -> bool:
    """Whether a convolution's kernel is 1×1, of one group and without padding; it may have a stride."""
    op, weight = node.op, node.inputs[1]
    return op.groups == 1 and set(weight.type.shape[2:]) == {1} and not any(map(any, op.padding))  # type: ignore[attr-defined]
