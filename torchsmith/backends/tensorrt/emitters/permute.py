"""Dimensions in another order."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ops.permute import Permute


@emitter(Permute)
def permute(e: Emission, op: Permute, x: Any) -> Any:
    return e.permuted(x, op.dims)
