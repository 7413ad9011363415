"""Pooling over windows. A window of one dimension gets a second one of size 1: TensorRT's have two or three."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._greatest import Take, greatest, greatest_places, lowest
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Shape, simplify
from torchsmith.ops._spatial import Ints
from torchsmith.ops.pool import AvgPool, MaxPool, MaxPoolIndices

NATIVE = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@emitter(MaxPool)
def max_pool(e: Emission, op: MaxPool, x: Any) -> Any:
    if e.node.inputs[0].type.dtype not in NATIVE or any(d > 1 for d in op.dilation):
        return greatest(e, x, _takes(e, op))
    overhang = _overhang(e, op)
    if overhang is None:
        return _pooled(e, op, *_whole(e, op, x, lowest(e)), "MAX", _none(op), _none(op))
    return _pooled(e, op, x, e.node.inputs[0].type.shape, "MAX", op.padding, overhang)


@emitter(MaxPoolIndices)
def max_pool_indices(e: Emission, op: MaxPoolIndices, x: Any) -> Any:
    return greatest_places(e, x, _takes(e, op))


@emitter(AvgPool)
def avg_pool(e: Emission, op: AvgPool, x: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    overhang = _overhang(e, op)
    if overhang is None and not op.divisor:
        return _averaged_round_up(e, op, x)
    if overhang is None:
        y = _pooled(e, op, *_whole(e, op, x, e.number(0, dtype)), "AVERAGE", _none(op), _none(op))
    else:
        y = _pooled(
            e, op, x, e.node.inputs[0].type.shape, "AVERAGE", op.padding, overhang, exclude=not (op.count_include_pad or op.divisor)
        )
    if op.divisor:
        return e.binary("PROD", y, e.number(math.prod(op.kernel) / op.divisor, dtype, len(y.shape)))
    if op.count_include_pad and overhang is not None and any(overhang):
        return e.binary("PROD", y, e.constant(_counted_too_many(e, op).to(dtype)))
    return y


def _pooled(
    e: Emission, op: MaxPool | AvgPool, x: Any, shape: Shape, kind: str, padding: Ints, overhang: Ints, exclude: bool = False,
    round_up: bool = False,
) -> Any:  # fmt: skip
    """x, of that shape, through a pooling layer."""
    out = e.node.outputs[0].type.shape
    flat = len(op.kernel) == 1
    if flat:
        x = e.shaped(x, (*shape[:2], 1, shape[2]))
    layer = e.network.add_pooling_nd(x, getattr(trt().PoolingType, kind), _planar(op.kernel, 1))
    if layer is not None:
        layer.stride_nd = _planar(op.stride, 1)
        layer.pre_padding = _planar(padding, 0)
        layer.post_padding = _planar([p + more for p, more in zip(padding, overhang, strict=True)], 0)
        if round_up:
            layer.padding_mode = trt().PaddingMode.EXPLICIT_ROUND_UP
        if kind == "AVERAGE":
            layer.average_count_excludes_padding = exclude
    y = e.layer(layer)
    return e.shaped(y, out) if flat else y


def _overhang(e: Emission, op: MaxPool | AvgPool) -> Ints | None:
    """By how much the last windows hang over the padding; None where it is not known."""
    given, wanted = (v.type.shape[2:] for v in (e.node.inputs[0], e.node.outputs[0]))
    if not op.ceil_mode:
        return (0,) * len(given)
    if not all(isinstance(size, int) for size in (*given, *wanted)):
        return None
    sizes = zip(given, wanted, op.kernel, op.stride, op.padding, strict=True)
    return tuple(max((int(out) - 1) * s + k - int(size) - 2 * p, 0) for size, out, k, s, p in sizes)


def _whole(e: Emission, op: MaxPool | AvgPool, x: Any, fill: Any) -> tuple[Any, Shape]:
    """x with its padding and what windows hang over made real, and its shape."""
    shape, out = e.node.inputs[0].type.shape, e.node.outputs[0].type.shape
    size = tuple(simplify((n - 1) * s + k) for n, s, k in zip(out[2:], op.stride, op.kernel, strict=True))
    whole = (*shape[:2], *size)
    return e.sliced(x, (0, 0, *(-p for p in op.padding)), whole, mode="FILL", fill=fill), whole


def _averaged_round_up(e: Emission, op: AvgPool, x: Any) -> Any:
    """With ceil_mode over symbolic sizes: the layer rounds up, and what it is not to count is the padding that it is told of."""
    shape, out = e.node.inputs[0].type.shape, e.node.outputs[0].type.shape
    for size, wanted, k, s, p in zip(shape[2:], out[2:], op.kernel, op.stride, op.padding, strict=True):
        if isinstance(size, int) and -(-(size + 2 * p - k) // s) + 1 != wanted:
            raise Unsupported(f"average pooling of {e.node.inputs[0].type} with ceil_mode, where TensorRT has one window more")
    padding = op.padding
    if op.count_include_pad and any(padding):
        size = tuple(simplify(n + 2 * p) for n, p in zip(shape[2:], padding, strict=True))
        zero = e.number(0, e.node.inputs[0].type.dtype)
        shape, padding = (*shape[:2], *size), _none(op)
        x = e.sliced(x, (0, 0, *(-p for p in op.padding)), shape, mode="FILL", fill=zero)
    return _pooled(e, op, x, shape, "AVERAGE", padding, _none(op), exclude=True, round_up=True)


def _counted_too_many(e: Emission, op: AvgPool) -> torch.Tensor:
    """(1, 1, *out): the window's size over how much of it lies in x and its padding, which is what PyTorch divides by."""
    given, wanted = (v.type.shape[2:] for v in (e.node.inputs[0], e.node.outputs[0]))
    factor = torch.ones(1, 1, *(int(n) for n in wanted), dtype=torch.float64)
    for axis, (size, out, k, s, p) in enumerate(zip(given, wanted, op.kernel, op.stride, op.padding, strict=True)):
        room = int(size) + 2 * p - torch.arange(int(out)) * s
        along = [-1 if d == axis + 2 else 1 for d in range(factor.dim())]
        factor = factor * (k / room.clamp(max=k).double()).reshape(along)
    return factor


def _takes(e: Emission, op: MaxPool | MaxPoolIndices) -> list[list[Take]]:
    """Per dimension, from the last to the first, so that of equal elements the first in row-major order is found first."""
    wanted = e.node.outputs[0].type.shape
    rank = len(wanted)

    def taken(axis: int, offset: int) -> Take:
        n = axis - 2
        start = tuple(offset * op.dilation[n] - op.padding[n] if a == axis else 0 for a in range(rank))
        stride = [op.stride[n] if a == axis else 1 for a in range(rank)]
        # dimensions before this one have yet to be pooled
        size: Shape = (*e.node.inputs[0].type.shape[:axis], *wanted[axis:])
        return lambda x, fill: e.sliced(x, start, size, stride, "FILL", fill)

    return [[taken(axis, offset) for offset in range(op.kernel[axis - 2])] for axis in reversed(range(2, rank))]


def _none(op: MaxPool | AvgPool) -> Ints:
    return (0,) * len(op.kernel)


def _planar(numbers: Sequence[int], first: int) -> Ints:
    return (first, *numbers) if len(numbers) == 1 else tuple(numbers)
