"""Choices, element by element."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.where import Where


@emitter(Where)
def where(e: Emission, op: Where, condition: ov.Output, a: ov.Output, b: ov.Output) -> Any:
    kind = a.get_element_type()
    if kind in (ov.Type.i32, ov.Type.i64):
        # its Select may round integers to float32 when it is fused
        chosen = ops.convert(condition, kind.to_string())
        return ops.add(b, ops.multiply(chosen, ops.subtract(a, b)))
    return ops.select(condition, a, b)
