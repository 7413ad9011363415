"""A linear layer of few rows and the norm of its result: where K is divided, one kernel can add the parts up and norm the rows.

The two stay nodes of their own inside, so that a build may take them apart.
"""

from __future__ import annotations

from torchsmith.backends.cuda.fuse.epilogue import kind_of
from torchsmith.backends.cuda.fuse.fused import Fused, wrap
from torchsmith.backends.cuda.fuse.norm import main_input, taken
from torchsmith.ir.graph import Graph, Node

MOST_ELEMENTS = 1 << 20  # of the result: products that give more have enough blocks with K whole
LONGEST_ROW = 4096


def gemm_norm(graph: Graph) -> Graph:
    producers = {v: n for n in graph.nodes for v in n.outputs}
    owned: set[Node] = set()
    clusters: list[tuple[str, list[Node]]] = []
    for node in graph.nodes:
        if kind_of(node) != "norm":
            continue
        x = main_input(node)
        product = producers.get(x)
        if product is None or product in owned or not is_linear(product) or not rows_are_normed(node):
            continue
        shape = x.type.shape
        few = isinstance(x.type.numel, int) and x.type.numel <= MOST_ELEMENTS
        if few and isinstance(shape[-1], int) and shape[-1] <= LONGEST_ROW and taken([node]) <= {x, *graph.constants}:
            owned.update((product, node))
            clusters.append(("gemm_norm", [product, node]))
    return wrap(graph, clusters, nested=True)


def is_linear(node: Node) -> bool:
    """Whether the node is a linear layer, with what follows it: nothing before, one output."""
    nodes = node.op.body.nodes if isinstance(node.op, Fused) else (node,)
    products = {"gemm": "Linear", "gemm_int8": "IntegerLinear", "gemm_float8": "Float8Linear"}
    return type(nodes[0].op).__name__ == products.get(kind_of(node) or "") and len(node.outputs) == 1


def rows_are_normed(node: Node) -> bool:
    """Whether the norm is of the last dimension, and of what the product gives as it is."""
    nodes = node.op.body.nodes if isinstance(node.op, Fused) else (node,)
    main = nodes[0].op
    return type(main).__name__ in ("LayerNorm", "RmsNorm") and main.dims == 1  # type: ignore[attr-defined]
