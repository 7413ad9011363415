"""Batch normalisation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.batch_norm import BatchNorm


@emitter(BatchNorm)
def batch_norm(
    e: Emission, op: BatchNorm, x: ov.Output, weight: ov.Output, bias: ov.Output, mean: ov.Output, var: ov.Output
) -> Any:
    return ops.batch_norm_inference(x, weight, bias, mean, var, op.eps)
