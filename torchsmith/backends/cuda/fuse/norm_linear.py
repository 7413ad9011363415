"""A layer norm whose only use is one linear layer may run inside it.

The norm and the product stay nodes of the fused one's body: with many rows each on its own is faster.
"""

from __future__ import annotations

import torch

from torchsmith.backends.cuda.fuse.fused import Fused, wrap
from torchsmith.ir.graph import Graph, Node, Value


def norm_linear(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    clusters: list[tuple[str, list[Node]]] = []
    for node in graph.nodes:
        if _is_norm(node, graph):
            (y,) = node.outputs
            (user, *others) = users[y] or [node]
            if not others and y not in outputs and _is_linear_of(user, y, graph):
                clusters.append(("norm_gemm", [node, user]))
    return wrap(graph, clusters, nested=True)


def _is_norm(node: Node, graph: Graph) -> bool:
    """Whether the node is a layer norm over the last dimension with constant weights, and nothing else."""
    inner = _inner(node)
    op = inner[0].op
    if len(inner) > 1 or type(op).__name__ != "LayerNorm" or op.dims != 1:  # type: ignore[attr-defined]
        return False
    half = inner[0].inputs[0].type.dtype in (torch.float16, torch.bfloat16)
    return half and len(node.inputs) == 3 and all(v in graph.constants for v in node.inputs[1:])


def _is_linear_of(node: Node, x: Value, graph: Graph) -> bool:
    """Whether the node is a linear layer of x, with constant weights and what follows it, and takes x nowhere else."""
    inner = _inner(node)
    linears = [n for n in inner if type(n.op).__name__ == "Linear"]
    if len(linears) != 1 or inner[0] is not linears[0] or (isinstance(node.op, Fused) and node.op.kind != "gemm"):
        return False
    taken = [v for n in inner for v in n.inputs]
    return linears[0].inputs[0] is x and taken.count(x) == 1 and all(v in graph.constants for v in linears[0].inputs[1:])


def _inner(node: Node) -> tuple[Node, ...]:
    return node.op.body.nodes if isinstance(node.op, Fused) else (node,)
