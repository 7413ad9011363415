"""Limits. A NaN becomes a limit, where PyTorch keeps it."""

from __future__ import annotations

import math
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.clamp import Clamp

EXACT = 2**24  # float32 holds every integer up to here


@emitter(Clamp)
def clamp(e: Emission, op: Clamp, x: ov.Output) -> Any:
    low, high = -math.inf if op.low is None else op.low, math.inf if op.high is None else op.high
    if x.get_element_type().is_real() and low <= high:
        return ops.clamp(x, float(low), float(high))
    if op.low is not None and op.high is not None and max(abs(low), abs(high)) > EXACT and x.get_element_type().is_integral():
        raise Unsupported(f"OpenVINO limits integers as float32, which cannot tell {op.low} and {op.high} from their neighbours")
    x = x if op.low is None else ops.maximum(x, e.number(op.low, x)).output(0)
    return x if op.high is None else ops.minimum(x, e.number(op.high, x))
