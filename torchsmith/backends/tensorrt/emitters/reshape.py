"""Reshapes."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ops.reshape import Reshape


@emitter(Reshape)
def reshape(e: Emission, op: Reshape, x: Any) -> Any:
    return e.shaped(x, op.shape)
