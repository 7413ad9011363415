"""Casts."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, element_type, emitter
from torchsmith.ops.cast import Cast


@emitter(Cast)
def cast(e: Emission, op: Cast, x: ov.Output) -> Any:
    wanted = element_type(op.dtype)
    if wanted == ov.Type.boolean:
        return ops.not_equal(x, e.number(0, x))  # its conversion loses NaN and the least integer
    return ops.convert(x, wanted.to_string())
