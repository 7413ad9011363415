"""Fusion: which nodes run as one kernel. An ordered list of patterns; each takes a graph and gives one with larger nodes."""

from __future__ import annotations

from collections.abc import Callable

from torchsmith.backends.cuda.fuse.epilogue import epilogue
from torchsmith.backends.cuda.fuse.gate import gate
from torchsmith.backends.cuda.fuse.pointwise import pointwise
from torchsmith.ir.graph import Graph

FUSIONS: tuple[Callable[[Graph], Graph], ...] = (
    gate,  # before epilogue: a product that was followed would take the scale as its epilogue
    epilogue,
    pointwise,  # the rest
)


def fuse(graph: Graph) -> Graph:
    """The graph with `Fused` nodes; it computes the same."""
    for fusion in FUSIONS:
        graph = fusion(graph)
    return graph
