"""Running totals."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.cumulative import Cumulative


@emitter(Cumulative)
def cumulative(e: Emission, op: Cumulative, x: ov.Output) -> Any:
    if op.function != "sum":
        raise Unsupported(f"OpenVINO has no running {op.function}")
    return ops.cum_sum(x, ops.constant(op.dim, ov.Type.i64))
