"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.layer_norm import LayerNorm


@emitter(LayerNorm)
def layer_norm(e: Emission, op: LayerNorm, x: ov.Output, weight: ov.Output | None = None, bias: ov.Output | None = None) -> Any:
    y = ops.mvn(x, e.ints(range(-op.dims, 0)), True, op.eps, "inside_sqrt")
    if weight is not None:
        y = ops.multiply(y, weight)
    return y if bias is None else ops.add(y, bias)
