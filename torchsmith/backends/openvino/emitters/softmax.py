"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.softmax import LogSoftmax, Softmax


@emitter(Softmax)
def softmax(e: Emission, op: Softmax, x: ov.Output) -> Any:
    return ops.softmax(x, op.dim)


@emitter(LogSoftmax)
def log_softmax(e: Emission, op: LogSoftmax, x: ov.Output) -> Any:
    return ops.log_softmax(x, op.dim)
