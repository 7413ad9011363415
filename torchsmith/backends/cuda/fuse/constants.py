"""A cast of a repeated constant is the repetition of a cast one: nothing is left to run."""

from __future__ import annotations

from dataclasses import replace

from torchsmith.ir.graph import Graph, Node, Value


def constants(graph: Graph) -> Graph:
    producers = {v: n for n in graph.nodes for v in n.outputs}
    made = dict(graph.constants)
    nodes = list[Node]()
    for node in graph.nodes:
        repeated = producers.get(node.inputs[0]) if type(node.op).__name__ == "Cast" else None
        if repeated is None or type(repeated.op).__name__ != "Expand" or repeated.inputs[0] not in graph.constants:
            nodes.append(node)
            continue
        source, (output,) = repeated.inputs[0], node.outputs
        cast = Value(f"{output.name}.once", source.type.with_dtype(output.type.dtype))
        made[cast] = graph.constants[source].to(output.type.dtype)
        nodes.append(Node(repeated.op, (cast,), (output,), node.origin))
    return replace(graph, nodes=tuple(nodes), constants=made)
