"""Reshapes."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.reshape import Reshape


@emitter(Reshape)
def reshape(e: Emission, op: Reshape, x: ov.Output) -> Any:
    if not op.shape and e.node.inputs[0].type.rank:
        # a reshape to no dimensions after a matrix product crashes OpenVINO 2026.4
        return ops.squeeze(x, e.ints(range(e.node.inputs[0].type.rank)))
    symbolic = [axis for axis, size in enumerate(op.shape) if not isinstance(size, int)]
    if len(symbolic) == 1 and 0 not in op.shape:
        # one size left open is cheaper than one computed as the engine runs
        return ops.reshape(x, e.ints([size if isinstance(size, int) else -1 for size in op.shape]), False)
    return ops.reshape(x, e.sizes(op.shape), False)
