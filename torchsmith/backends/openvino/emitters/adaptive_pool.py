"""Pooling to a given output size."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.adaptive_pool import AdaptiveAvgPool, AdaptiveMaxPool


@emitter(AdaptiveAvgPool)
def adaptive_avg_pool(e: Emission, op: AdaptiveAvgPool, x: ov.Output) -> Any:
    return ops.adaptive_avg_pool(x, e.sizes(op.output))


@emitter(AdaptiveMaxPool)
def adaptive_max_pool(e: Emission, op: AdaptiveMaxPool, x: ov.Output) -> Any:
    y = ops.adaptive_max_pool(x, e.sizes(op.output), "i32")
    return y.output(0), ops.convert(y.output(1), "i64").output(0)
