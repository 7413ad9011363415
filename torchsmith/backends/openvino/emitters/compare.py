"""Comparisons.

OpenVINO compares integers as float32, and says that NaN is greater than anything: both are avoided here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.compare import Compare

FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": ops.equal,
    "ne": ops.not_equal,
    "lt": ops.less,
    "le": ops.less_equal,
    "gt": lambda a, b: ops.less(b, a),
    "ge": lambda a, b: ops.less_equal(b, a),
}
# By the difference to zero, which survives the rounding.
ON_INTEGERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "eq": lambda a, b, zero: ops.equal(ops.subtract(a, b), zero),
    "ne": lambda a, b, zero: ops.not_equal(ops.subtract(a, b), zero),
    "lt": lambda a, b, zero: ops.not_equal(ops.subtract(ops.maximum(a, b), a), zero),
    "le": lambda a, b, zero: ops.equal(ops.subtract(ops.maximum(a, b), b), zero),
    "gt": lambda a, b, zero: ON_INTEGERS["lt"](b, a, zero),
    "ge": lambda a, b, zero: ON_INTEGERS["le"](b, a, zero),
}
WIDE = (ov.Type.i32, ov.Type.i64)


@emitter(Compare)
def compare(e: Emission, op: Compare, a: ov.Output, b: ov.Output) -> Any:
    if a.get_element_type() in WIDE:
        return ON_INTEGERS[op.function](a, b, e.number(0, a))
    return FUNCTIONS[op.function](a, b)
