"""Choices, element by element."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import select
from torchsmith.ops.where import Where


@emitter(Where)
def where(e: Emission, op: Where, condition: Any, a: Any, b: Any) -> Any:
    return select(e, condition, a, b)
