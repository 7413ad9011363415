"""Ranges of numbers."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, data_type, emitter
from torchsmith.backends.tensorrt.library import trt
from torchsmith.ops.create import Arange


@emitter(Arange)
def arange(e: Emission, op: Arange) -> Any:
    if not op.symbols():
        return e.constant(op.reference())
    whole = not any(isinstance(number, float) for number in (op.start, op.step))
    # whole numbers are counted as such, so that they are exact up to the last cast
    numbers = counted(e, e.size(op.size))
    if not whole:
        numbers = e.to(numbers, torch.float32)
    if op.step != 1:
        numbers = e.binary("PROD", numbers, _number(e, op.step, whole))
    if op.start != 0:
        numbers = e.binary("SUM", numbers, _number(e, op.start, whole))
    return e.to(numbers, op.dtype)


def counted(e: Emission, size: Any) -> Any:
    """0, 1, … as a vector of int64; size: a vector of one, which says how many."""
    inputs = size, e.number(0, torch.int64), e.ints([1])
    layer = e.network.add_fill((1,), trt().FillOperation.LINSPACE, data_type(torch.int64))
    if layer is not None:
        for number, tensor in enumerate(inputs):
            layer.set_input(number, tensor)
    return e.layer(layer)


def _number(e: Emission, number: Any, whole: bool) -> Any:
    """A vector of one, in int64 where all the numbers are whole, else in float32."""
    if isinstance(number, float):
        return e.number(number, torch.float32, 1)
    return e.size(number) if whole else e.to(e.size(number), torch.float32)
