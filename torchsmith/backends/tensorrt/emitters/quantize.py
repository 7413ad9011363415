"""Quantize/dequantize pairs.

TensorRT quantizes to int8 from -128 to 127 without a zero point, and to fp8 (e4m3); these layers it turns into kernels of eight
bits. Other ranges, zero points and uint8 are computed: rounded and limited in float32.
"""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, data_type, emitter
from torchsmith.backends.tensorrt.emitters._pieces import like, select, wide
from torchsmith.ops.quantize import FP8, LIMITS, Dequantize, Quantize

QUANTIZED = (torch.int8, FP8)  # what TensorRT's layers quantize to


@emitter(Quantize)
def quantize(e: Emission, op: Quantize, x: Any, scale: Any, zero_point: Any | None = None) -> Any:
    if op.dtype == FP8:
        return by_layer(e, x, scale, op.axis, FP8)
    if op.dtype == torch.int8 and (op.low, op.high) == LIMITS[torch.int8] and zero_point is None:
        return by_layer(e, x, scale, op.axis, torch.int8)
    rank = len(x.shape)
    y = e.binary("PROD", wide(e, x), e.unary("RECIP", _along(e, scale, op.axis, rank)))
    y = e.unary("ROUND", y)
    if zero_point is not None:
        y = e.binary("SUM", y, _along(e, e.to(zero_point, torch.float32), op.axis, rank))
    low, high = like(e, op.low, y), like(e, op.high, y)
    # NaN is not greater than anything
    y = select(e, e.binary("GREATER", y, low), y, low)
    y = select(e, e.binary("LESS", y, high), y, high)
    return e.to(e.to(y, torch.int32), op.dtype)


@emitter(Dequantize)
def dequantize(e: Emission, op: Dequantize, q: Any, scale: Any, zero_point: Any | None = None) -> Any:
    data_type(op.dtype)
    if e.node.inputs[0].type.dtype in QUANTIZED and zero_point is None:
        return by_layer(e, q, scale, op.axis, op.dtype)
    known = [tensor for tensor in map(e.known, range(len(e.node.inputs))) if tensor is not None]
    if len(known) == len(e.node.inputs):
        return e.constant(op.reference(*known))
    rank = len(q.shape)
    y = e.to(q, torch.float32)
    if zero_point is not None:
        y = e.binary("SUB", y, _along(e, e.to(zero_point, torch.float32), op.axis, rank))
    return e.to(e.binary("PROD", y, _along(e, scale, op.axis, rank)), op.dtype)


def by_layer(e: Emission, x: Any, scale: Any, axis: int | None, dtype: torch.dtype) -> Any:
    """A layer for either way: to eight bits, or from them to another dtype. It takes at least one dimension."""
    add = e.network.add_quantize if dtype in QUANTIZED else e.network.add_dequantize
    layer = add(e.rank(x, max(len(x.shape), 1)), scale, data_type(dtype))
    if layer is not None and axis is not None:
        layer.axis = axis
    y = e.layer(layer)
    return e.reshape_to(y, ()) if len(x.shape) == 0 else y


def _along(e: Emission, numbers: Any, axis: int | None, rank: int) -> Any:
    """Numbers per channel, shaped to be broadcast along dimension `axis`."""
    return numbers if axis is None else e.reshape_to(numbers, [-1 if dim == axis else 1 for dim in range(rank)])
