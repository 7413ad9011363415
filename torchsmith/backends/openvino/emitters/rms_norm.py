"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.rms_norm import RmsNorm


@emitter(RmsNorm)
def rms_norm(e: Emission, op: RmsNorm, x: ov.Output, weight: ov.Output | None = None) -> Any:
    # the form that the engine knows as one RMS node
    squares = ops.reduce_mean(ops.power(x, e.number(2.0, x)), e.ints(range(-op.dims, 0)), True)
    y = ops.multiply(x, ops.divide(e.number(1.0, x), ops.sqrt(ops.add(squares, e.number(op.eps, x)))))
    return y if weight is None else ops.multiply(y, weight)
