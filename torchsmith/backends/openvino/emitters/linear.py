"""Linear layers."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.ops.linear import Linear


@emitter(Linear)
def linear(e: Emission, op: Linear, x: ov.Output, weight: ov.Output, bias: ov.Output | None = None) -> Any:
    refuse_empty(e)
    y = ops.matmul(x, weight, False, True)
    return y if bias is None else ops.add(y, bias)
