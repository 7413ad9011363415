"""A mask that hides nothing, a constant all True or all zero, is no mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchsmith.backends.cuda.fuse.rules import apply
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.rewrite import Seen


def masks(graph: Graph) -> Graph:
    return apply(graph, [_hides_nothing])


def _hides_nothing(node: Node, seen: Seen) -> Sequence[Value] | None:
    if type(node.op).__name__ not in ("Attention", "Float8Attention") or len(node.inputs) < 4:
        return None
    mask = node.inputs[3]
    while (before := seen.producer(mask)) is not None and type(before.op).__name__ in ("Expand", "Reshape", "Permute", "Slice"):
        mask = before.inputs[0]
    given = seen.constant(mask)
    if given is None or not bool(given.all() if given.dtype == torch.bool else (given == 0).all()):
        return None
    return [node.op(*node.inputs[:3])]
