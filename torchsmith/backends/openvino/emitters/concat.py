"""Concatenation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.concat import Concat


@emitter(Concat)
def concat(e: Emission, op: Concat, *xs: ov.Output) -> Any:
    return ops.concat(list(xs), op.dim)
