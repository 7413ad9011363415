"""Concatenation."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ops.concat import Concat


@emitter(Concat)
def concat(e: Emission, op: Concat, *xs: Any) -> Any:
    kept = [x for x, value in zip(xs, e.node.inputs, strict=True) if value.type.shape[op.dim] != 0]
    return e.joined(kept, op.dim)
