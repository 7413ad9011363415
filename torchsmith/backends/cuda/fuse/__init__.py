"""Fusion: which nodes run as one kernel. An ordered list of patterns; each takes a graph and gives one with larger nodes."""

from __future__ import annotations

from collections.abc import Callable

from torchsmith.backends.cuda.fuse.attention import attention
from torchsmith.backends.cuda.fuse.batch_norm import batch_norm
from torchsmith.backends.cuda.fuse.constants import constants
from torchsmith.backends.cuda.fuse.epilogue import epilogue
from torchsmith.backends.cuda.fuse.gate import gate
from torchsmith.backends.cuda.fuse.gemm_norm import gemm_norm
from torchsmith.backends.cuda.fuse.masks import masks
from torchsmith.backends.cuda.fuse.norm import norm
from torchsmith.backends.cuda.fuse.pointwise import pointwise
from torchsmith.backends.cuda.fuse.quantized import quantized
from torchsmith.backends.cuda.fuse.siblings import siblings
from torchsmith.backends.cuda.fuse.squeeze_excite import squeeze_excite
from torchsmith.backends.cuda.fuse.stem import stem
from torchsmith.ir.graph import Graph

FUSIONS: tuple[Callable[[Graph], Graph], ...] = (
    constants,
    quantized,  # before all that looks for products
    batch_norm,
    attention,
    masks,
    siblings,
    gate,  # before epilogue: a product that was followed would take the scale as its epilogue
    stem,  # before epilogue, which makes one node of the convolution and what follows
    squeeze_excite,  # before epilogue, which makes products of its layers
    epilogue,
    norm,  # after epilogue: a product takes the residual that it can
    gemm_norm,
    pointwise,  # the rest
)


def fuse(graph: Graph) -> Graph:
    """The graph with `Fused` nodes; it computes the same."""
    for fusion in FUSIONS:
        graph = fusion(graph)
    return graph
