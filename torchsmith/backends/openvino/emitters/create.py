"""Ranges of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, element_type, emitter
from torchsmith.ops.create import Arange


@emitter(Arange)
def arange(e: Emission, op: Arange) -> Any:
    zero, one = (ops.constant(np.int64(n)) for n in (0, 1))
    kind = "f32" if op.dtype.is_floating_point else "i64"
    numbers = ops.convert(ops.range(zero, e.size(op.size), one, "i64"), kind)
    if op.step != 1:
        numbers = ops.multiply(numbers, _number(e, op.step, kind))
    if op.start != 0:
        numbers = ops.add(numbers, _number(e, op.start, kind))
    return ops.convert(numbers, element_type(op.dtype).to_string())


def _number(e: Emission, number: Any, kind: str) -> Any:
    return ops.constant(np.float32(number)) if isinstance(number, float) else ops.convert(e.size(number), kind)
