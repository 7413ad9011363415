"""Slices."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ops.slice import Slice


@emitter(Slice)
def slice(e: Emission, op: Slice, x: Any) -> Any:
    size = e.node.outputs[0].type.shape
    start = [op.start if axis == op.dim else 0 for axis in range(len(size))]
    stride = [op.step if axis == op.dim else 1 for axis in range(len(size))]
    return e.sliced(x, tuple(start), size, stride)
