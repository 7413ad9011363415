"""Dimensions in another order."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.permute import Permute


@emitter(Permute)
def permute(e: Emission, op: Permute, x: ov.Output) -> Any:
    return ops.transpose(x, e.ints(op.dims))
