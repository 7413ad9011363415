"""Group and instance normalisation."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.group_norm import GroupNorm


@emitter(GroupNorm)
def group_norm(e: Emission, op: GroupNorm, x: ov.Output, weight: ov.Output | None = None, bias: ov.Output | None = None) -> Any:
    shape = e.node.inputs[0].type.shape
    rank, channels = len(shape), shape[1]
    if op.groups == 1:
        y = ops.mvn(x, e.ints(range(1, rank)), True, op.eps, "inside_sqrt")
    elif op.groups == channels and rank > 2:
        y = ops.mvn(x, e.ints(range(2, rank)), True, op.eps, "inside_sqrt")
    else:
        grouped = ops.reshape(x, e.ints([0, op.groups, -1]), True)
        y = ops.reshape(ops.mvn(grouped, e.ints([2]), True, op.eps, "inside_sqrt"), e.sizes(shape), False)
    per_channel = e.ints([1, channels, *[1] * (rank - 2)])
    if weight is not None:
        y = ops.multiply(y, ops.reshape(weight, per_channel, False))
    return y if bias is None else ops.add(y, ops.reshape(bias, per_channel, False))
