"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.layer_norm import LayerNorm


@emitter(LayerNorm)
def layer_norm(e: Emission, op: LayerNorm, x: ov.Output, weight: ov.Output | None = None, bias: ov.Output | None = None) -> Any:
    shape = e.node.inputs[0].type.shape
    rows = len(shape) > 3 and op.dims == 1
    if rows:
        # the engine's fast kernel takes three dimensions, and splits the norm of a fourth into five steps
        x = ops.reshape(x, e.ints([0, -1, shape[-1]]) , True).output(0)
    y = ops.mvn(x, e.ints(range(-op.dims, 0)), True, op.eps, "inside_sqrt")
    if weight is not None:
        y = ops.multiply(y, weight)
    if bias is not None:
        y = ops.add(y, bias)
    return ops.reshape(y, e.sizes(shape), False) if rows else y
