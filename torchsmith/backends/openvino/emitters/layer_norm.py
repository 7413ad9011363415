"""Layer normalisation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.ir.dim import Shape
from torchsmith.ops.layer_norm import LayerNorm


@emitter(LayerNorm)
def layer_norm(e: Emission, op: LayerNorm, x: ov.Output, weight: ov.Output | None = None, bias: ov.Output | None = None) -> Any:
    refuse_empty(e)
    shape = e.node.inputs[0].type.shape
    rows = len(shape) > 3 and op.dims == 1 and isinstance(shape[-1], int)
    if rows:
        # the kernel for three dimensions; a fourth would be normalised in five steps, the layout changed between them
        x = ops.reshape(x, e.ints([0, -1, shape[-1]]), True).output(0)
    y = ops.mvn(x, e.ints(range(-op.dims, 0)), True, op.eps, "inside_sqrt")
    if weight is not None:
        y = ops.multiply(y, weight)
    if bias is not None:
        y = ops.add(y, bias)
    return _reshaped(e, y, shape) if rows else y


def _reshaped(e: Emission, y: ov.Node, shape: Shape) -> ov.Node:
    """y, whose first dimension stays, as `shape`."""
    pattern = [size if isinstance(size, int) else -1 for size in shape[1:]]
    if pattern.count(-1) > 1:
        return ops.reshape(y, e.sizes(shape), False)
    # one size left open is cheaper than one computed as the engine runs
    return ops.reshape(y, e.ints([0, *pattern]), True)
