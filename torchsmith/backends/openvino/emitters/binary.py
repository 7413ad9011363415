"""Functions of two numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.binary import Binary

FUNCTIONS: dict[str, Callable[[ov.Output, ov.Output], Any]] = {
    "add": ops.add,
    "sub": ops.subtract,
    "mul": ops.multiply,
    "div": ops.divide,
    "pow": ops.power,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
}


@emitter(Binary)
def binary(e: Emission, op: Binary, a: ov.Output, b: ov.Output) -> Any:
    if op.function not in FUNCTIONS:
        raise Unsupported(f"OpenVINO has no {op.function}")
    return FUNCTIONS[op.function](a, b)
