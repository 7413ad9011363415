"""Dimensions in another order."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.permute import Permute

_HEADS = (0, 2, 1, 3)  # from (batch, heads, tokens, features), as attention's products have it, or back


@emitter(Permute)
def permute(e: Emission, op: Permute, x: ov.Output) -> Any:
    shape = e.node.inputs[0].type.shape
    if op.dims != _HEADS or shape[1] != shape[2] or not all(isinstance(size, int) for size in shape):
        return ops.transpose(x, e.ints(op.dims))
    # OpenVINO 2026.4 makes a transpose part of the attention before it. With as many tokens as heads the result has the query's
    # shape, is written over the query while other heads still read it, and is wrong. It sees no attention behind a reshape.
    apart = ops.reshape(x, e.ints([*shape[:3], 1, shape[3]]), False)
    return ops.reshape(ops.transpose(apart, e.ints([*_HEADS, 4])), e.ints(shape), False)
