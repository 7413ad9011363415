"""Sizes as values."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ops.size import Size


@emitter(Size)
def size(e: Emission, op: Size) -> Any:
    return e.reshape_to(e.size(op.size), ())
