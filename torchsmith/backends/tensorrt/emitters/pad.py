"""Padding: a slice that begins before x does, and ends after it."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ir.dim import simplify
from torchsmith.ops.pad import Pad

MODES = {"constant": "FILL", "reflect": "REFLECT", "replicate": "CLAMP", "circular": "WRAP"}


@emitter(Pad)
def pad(e: Emission, op: Pad, x: Any) -> Any:
    type = e.node.outputs[0].type
    start = tuple(simplify(-before) for before in op.before)
    if op.mode != "constant":
        return e.sliced(x, start, type.shape, mode=MODES[op.mode])
    # a constant of int8 is one that is to be dequantized
    moved = torch.int32 if type.dtype == torch.int8 else type.dtype
    value = op.value if type.dtype.is_floating_point else int(op.value)
    return e.to(e.sliced(e.to(x, moved), start, type.shape, mode="FILL", fill=e.number(value, moved)), type.dtype)
