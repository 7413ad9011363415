"""Padding."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.pad import Pad

MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@emitter(Pad)
def pad(e: Emission, op: Pad, x: ov.Output) -> Any:
    if op.mode not in MODES:
        raise Unsupported(f"OpenVINO has no {op.mode} padding")
    return ops.pad(x, e.sizes(op.before), e.sizes(op.after), MODES[op.mode], e.number(op.value, x))
