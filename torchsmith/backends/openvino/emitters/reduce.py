"""Reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.reduce import Reduce

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": ops.reduce_sum,
    "mean": ops.reduce_mean,
    "max": ops.reduce_max,
    "min": ops.reduce_min,
}


@emitter(Reduce)
def reduce(e: Emission, op: Reduce, x: ov.Output) -> Any:
    if op.function not in FUNCTIONS:
        raise Unsupported(f"OpenVINO has no reduction {op.function}")
    return FUNCTIONS[op.function](x, e.ints(op.dims), op.keepdim)
