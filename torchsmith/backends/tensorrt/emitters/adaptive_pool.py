"""Pooling to a given output size: the elements of each window are gathered, and then reduced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._greatest import Take, greatest_places
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same
from torchsmith.ops.adaptive_pool import AdaptiveAvgPool, AdaptiveMaxPool


@emitter(AdaptiveAvgPool)
def adaptive_avg_pool(e: Emission, op: AdaptiveAvgPool, x: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    x = e.to(x, torch.float32)
    for axis, (index, length) in reversed(_windows(e).items()):
        x = e.layer(e.network.add_gather(x, e.constant(index), axis))
        rest = [1] * (len(x.shape) - axis - 2)
        leading = [1] * axis
        inside = torch.arange(index.shape[1]) < length[:, None]
        if not inside.all():
            zero = e.number(0, torch.float32, len(x.shape))
            x = e.layer(e.network.add_select(e.constant(inside.reshape(*leading, *index.shape, *rest)), x, zero))
        x = _reduced(e, x, "SUM", axis + 1)
        x = e.binary("PROD", x, e.constant((1 / length.double()).float().reshape(*leading, -1, *rest)))
    return e.to(x, dtype)


@emitter(AdaptiveMaxPool)
def adaptive_max_pool(e: Emission, op: AdaptiveMaxPool, x: Any) -> Any:
    windows = _windows(e)
    values = x
    for axis, (index, _) in reversed(windows.items()):
        values = _reduced(e, e.layer(e.network.add_gather(values, e.constant(index), axis)), "MAX", axis + 1)
    takes = [[_taken(e, axis, index[:, k]) for k in range(index.shape[1])] for axis, (index, _) in reversed(windows.items())]
    return values, greatest_places(e, x, takes)


def _windows(e: Emission) -> dict[int, tuple[Tensor, Tensor]]:
    """By dimension that changes: (windows, elements) of indices, where a short window repeats its last, and windows' lengths."""
    found = {}
    sizes = zip(e.node.inputs[0].type.shape, e.node.outputs[0].type.shape, strict=True)
    for axis, (size, wanted) in enumerate(sizes):
        if same(size, wanted):
            continue
        if not isinstance(size, int) or not isinstance(wanted, int):
            raise Unsupported(f"adaptive pooling from {size} elements to {wanted}: TensorRT's windows must be known as it builds")
        number = torch.arange(wanted)
        start, end = number * size // wanted, -(-(number + 1) * size // wanted)
        length = end - start
        index = start[:, None] + torch.arange(int(length.max()))
        found[axis] = torch.minimum(index, end[:, None] - 1), length
    return found


def _taken(e: Emission, axis: int, index: Tensor) -> Take:
    return lambda x, fill: e.layer(e.network.add_gather(x, e.constant(index), axis))


def _reduced(e: Emission, x: Any, operation: str, axis: int) -> Any:
    return e.layer(e.network.add_reduce(x, getattr(trt().ReduceOperation, operation), 1 << axis, False))
