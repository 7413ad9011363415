"""A graph of one node, to ask something about it."""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch

from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType


def alone(node: Node, ranges: Mapping[str, tuple[int, int | None]] | None = None) -> Graph:
    """The node on its own: what it reads are the graph's inputs.

    Another input, "sizes" (float32), has every symbol of the node as one of its sizes, so that each stands alone somewhere.
    ranges: of the symbols; without, they have no limits.
    """
    symbols = {
        str(s)
        for v in (*node.inputs, *node.outputs)
        for size in v.type.shape
        if isinstance(size, sympy.Expr)
        for s in size.free_symbols
    }
    symbols |= node.op.symbols()
    shape = tuple(sympy.Symbol(s, integer=True, positive=True) for s in sorted(symbols))
    inputs = (*dict.fromkeys(node.inputs), Value("sizes", TensorType(shape, torch.float32)))
    return Graph(inputs, (node,), node.outputs, {}, {s: (ranges or {}).get(s, (0, None)) for s in symbols})
