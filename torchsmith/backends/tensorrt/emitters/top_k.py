"""The greatest or smallest elements.

Equal ones keep their order, as ONNX says of the operator that TensorRT has this layer for. TensorRT does not say where NaN comes.
"""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import at_least_two, like, mask_of
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, bind, symbols_in
from torchsmith.ops.top_k import TopK

GREATEST_K = 3840
LAST_DIMS = 4  # along one of which it sorts


@emitter(TopK)
def top_k(e: Emission, op: TopK, x: Any) -> Any:
    if (most := _most(e, op.k)) > GREATEST_K:
        asked = str(op.k) if isinstance(op.k, int) else f"{op.k}, up to {most},"
        raise Unsupported(f"TensorRT sorts out at most {GREATEST_K} elements, and {asked} are asked for")
    given = e.node.inputs[0].type
    x = e.to(x, torch.int32) if given.dtype in (torch.bool, torch.int8) else x
    order = [*(dim for dim in range(given.rank) if dim != op.dim), op.dim]
    far = given.rank - op.dim > LAST_DIMS
    rows = at_least_two(e, e.permuted(x, order) if far else x)
    dim = len(rows.shape) - 1 if far else op.dim + len(rows.shape) - given.rank
    kinds = trt().TopKOperation
    count = op.k if isinstance(op.k, int) else 1
    layer = e.network.add_topk(rows, kinds.MAX if op.largest else kinds.MIN, count, mask_of([dim]))
    if layer is not None and not isinstance(op.k, int):
        layer.set_input(1, e.reshape_to(e.to(e.size(op.k), torch.int32), ()))
    values, indices = e.layer(layer), e.to(e.layer(layer, 1), torch.int64)
    if far:
        back = [order.index(dim) for dim in range(given.rank)]
        values, indices = e.permuted(values, back), e.permuted(indices, back)
    if given.rank == 1:
        values, indices = e.shaped(values, (op.k,)), e.shaped(indices, (op.k,))
    if given.dtype == torch.bool:
        return e.binary("GREATER", values, like(e, 0, values)), indices
    return e.to(values, given.dtype), indices


def _most(e: Emission, k: Dim) -> int:
    """How great k may be; 0 where that is not known."""
    highs = {name: e.graph.ranges[name][1] for name in symbols_in(k)}
    limits = {name: high for name, high in highs.items() if high is not None}
    found: int = bind(k, limits) if len(limits) == len(highs) else 0
    return found
