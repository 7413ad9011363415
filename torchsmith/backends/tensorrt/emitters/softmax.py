"""Softmax and its logarithm, in float32."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import at_least_two, mask_of, reduced, wide
from torchsmith.ops.softmax import LogSoftmax, Softmax


def softmaxed(e: Emission, x: Any, dim: int) -> Any:
    """x: at least two dimensions."""
    layer = e.network.add_softmax(x)
    if layer is not None:
        layer.axes = mask_of([dim])
    return e.layer(layer)


@emitter(Softmax)
def softmax(e: Emission, op: Softmax, x: Any) -> Any:
    given = e.node.inputs[0].type
    rows = at_least_two(e, wide(e, x))
    y = e.to(softmaxed(e, rows, op.dim + len(rows.shape) - given.rank), given.dtype)
    return e.shaped(y, given.shape) if given.rank == 1 else y


@emitter(LogSoftmax)
def log_softmax(e: Emission, op: LogSoftmax, x: Any) -> Any:
    wanted: torch.dtype = e.node.inputs[0].type.dtype
    x = wide(e, x)
    below = e.binary("SUB", x, reduced(e, "MAX", x, [op.dim], True))
    total = reduced(e, "SUM", e.unary("EXP", below), [op.dim], True)
    return e.to(e.binary("SUB", below, e.unary("LOG", total)), wanted)
