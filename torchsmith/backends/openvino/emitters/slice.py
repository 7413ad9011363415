"""Slices."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.slice import Slice


@emitter(Slice)
def slice(e: Emission, op: Slice, x: ov.Output) -> Any:
    return ops.slice(x, e.sizes((op.start,)), e.sizes((op.end,)), e.ints([op.step]), e.ints([op.dim]))
