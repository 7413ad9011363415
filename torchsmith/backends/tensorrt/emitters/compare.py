"""Comparisons. TensorRT has three of them; none holds for NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import either, no
from torchsmith.ops.compare import Compare


def _or_equal(e: Emission, order: str, a: Any, b: Any) -> Any:
    return either(e, e.binary(order, a, b), e.binary("EQUAL", a, b))


FUNCTIONS: dict[str, Callable[[Emission, Any, Any], Any]] = {
    "eq": lambda e, a, b: e.binary("EQUAL", a, b),
    "ne": lambda e, a, b: no(e, e.binary("EQUAL", a, b)),
    "lt": lambda e, a, b: e.binary("LESS", a, b),
    "gt": lambda e, a, b: e.binary("GREATER", a, b),
    "le": lambda e, a, b: _or_equal(e, "LESS", a, b),
    "ge": lambda e, a, b: _or_equal(e, "GREATER", a, b),
}


@emitter(Compare)
def compare(e: Emission, op: Compare, a: Any, b: Any) -> Any:
    if e.node.inputs[0].type.dtype in (torch.bool, torch.int8):
        a, b = e.to(a, torch.int32), e.to(b, torch.int32)
    return FUNCTIONS[op.function](e, a, b)
