"""Elements put by index. TensorRT's scatter puts only; what is combined instead is found by comparing indices with places."""

from __future__ import annotations

import math
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ops.scatter import ScatterElements, ScatterRows

OPERATIONS = {"sum": "SUM", "prod": "PROD", "amax": "MAX", "amin": "MIN"}
MOST_COMPARED = 2**24  # elements of the tensor between the comparison and the reduction


@emitter(ScatterElements)
def scatter_elements(e: Emission, op: ScatterElements, x: Any, index: Any, values: Any) -> Any:
    if 0 in e.node.inputs[1].type.shape:
        return e.layer(e.network.add_identity(x))
    if op.reduction == "none":
        return _put(e, x, index, values, trt().ScatterMode.ELEMENT, op.dim)
    return _combined(e, op.dim, op.reduction, x, index, values)


@emitter(ScatterRows)
def scatter_rows(e: Emission, op: ScatterRows, x: Any, index: Any, values: Any) -> Any:
    if 0 in e.node.inputs[1].type.shape:
        return e.layer(e.network.add_identity(x))
    if not op.accumulate:
        return _put(e, x, e.reshape_to(index, (-1, 1)), values, trt().ScatterMode.ND, 0)
    rank = len(x.shape)
    return _combined(e, 0, "sum", x, e.reshape_to(index, (-1, *[1] * (rank - 1))), values)


def _put(e: Emission, x: Any, index: Any, values: Any, mode: Any, dim: int) -> Any:
    """The layer, which takes numbers: bools are 0 and 1 in it."""
    dtype: torch.dtype = e.node.inputs[0].type.dtype
    if dtype == torch.bool:
        x, values = e.to(x, torch.int32), e.to(values, torch.int32)
    layer = e.network.add_scatter(x, index, values, mode)
    if layer is not None and mode == trt().ScatterMode.ELEMENT:
        layer.axis = dim
    y = e.layer(layer)
    return e.to(y, dtype) if dtype == torch.bool else y


def _combined(e: Emission, dim: int, reduction: str, x: Any, index: Any, values: Any) -> Any:
    """Each place of x with those of the values whose index is that place; index broadcasts to the values."""
    x_type, v_type = e.node.inputs[0].type, e.node.inputs[2].type
    dtype, places = x_type.dtype, x_type.shape[dim]
    if dtype == torch.bool:
        raise Unsupported(f"a scatter that combines booleans by {reduction}: TensorRT combines numbers")
    if not (x_type.is_static and v_type.is_static):
        raise Unsupported(
            f"TensorRT's scatter does not combine, and for a {reduction} in its place {x_type} and {v_type} must be known"
        )
    compared = math.prod(map(int, x_type.shape)) * int(v_type.shape[dim])
    if compared > MOST_COMPARED:
        raise Unsupported(f"TensorRT's scatter does not combine, and a {reduction} in its place compares {compared} pairs")
    # what the index leaves out of the other dimensions goes nowhere
    whole = tuple(v_type.shape[axis] if axis == dim else size for axis, size in enumerate(x_type.shape))
    if whole != v_type.shape:
        start = (0,) * x_type.rank
        index = e.sliced(index, start, whole, mode="FILL", fill=e.number(-1, e.node.inputs[1].type.dtype))
        values = e.sliced(values, start, whole, mode="FILL", fill=e.to(e.number(0, torch.int32), dtype))
    wide = torch.float32 if dtype.is_floating_point else torch.int64 if dtype == torch.int64 else torch.int32
    x, values = e.to(x, wide), e.to(values, wide)
    # places stand in a new dimension in front
    numbers = torch.arange(int(places), dtype=torch.int64).reshape(-1, *[1] * x_type.rank)
    here = e.binary("EQUAL", e.to(index, torch.int64), e.constant(numbers))
    nothing = e.number(_nothing(reduction, wide), wide, x_type.rank + 1)
    chosen = e.layer(e.network.add_select(here, e.rank(values, x_type.rank + 1), nothing))
    operation = OPERATIONS[reduction]
    reduced = e.network.add_reduce(chosen, getattr(trt().ReduceOperation, operation), 1 << (dim + 1), False)
    # (places, the dimensions but dim): places go where dim was
    moved = e.permuted(e.layer(reduced), [*range(1, dim + 1), 0, *range(dim + 1, x_type.rank)])
    return e.to(e.binary(operation, x, moved), dtype)


def _nothing(reduction: str, dtype: torch.dtype) -> float:
    """What changes no result of that reduction."""
    if reduction in ("sum", "prod"):
        return 0 if reduction == "sum" else 1
    least, greatest = (-math.inf, math.inf) if dtype.is_floating_point else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return least if reduction == "amax" else greatest
