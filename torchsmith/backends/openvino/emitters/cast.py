"""Casts."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, element_type, emitter
from torchsmith.ops.cast import Cast


@emitter(Cast)
def cast(e: Emission, op: Cast, x: ov.Output) -> Any:
    return ops.convert(x, element_type(op.dtype).to_string())
