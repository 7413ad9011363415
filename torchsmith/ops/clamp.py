"""Numbers held within limits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ir.builder import expected
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import binary
from torchsmith.ops.promote import Operand, cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten
Limit = int | float | None


@dataclass(frozen=True)
class Clamp(Op):
    """min(max(x, low), high); None: no limit on that side. NaN stays NaN. Source: aten.clamp, relu6, hardtanh."""

    low: Limit
    high: Limit

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)


@converter(aten.clamp.default, aten.clip.default)
def clamp(x: Value, low: Operand | None = None, high: Operand | None = None) -> Value:
    x = cast(x, expected().dtype)
    if isinstance(low, (int, float, type(None))) and isinstance(high, (int, float, type(None))):
        return Clamp(low, high)(x)
    return clamp_tensor(x, low, high)


@converter(aten.clamp.Tensor, aten.clip.Tensor)
def clamp_tensor(x: Value, low: Operand | None = None, high: Operand | None = None) -> Value:
    x = cast(x, expected().dtype)
    x = x if low is None else binary("maximum", x, low)
    return x if high is None else binary("minimum", x, high)


@converter(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(x: Value, low: Operand) -> Value:
    return clamp(x, low, None)


@converter(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(x: Value, high: Operand) -> Value:
    return clamp(x, None, high)


@converter(aten.relu6.default)
def relu6(x: Value) -> Value:
    return Clamp(0, 6)(x)


@converter(aten.hardtanh.default)
def hardtanh(x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return clamp(x, low, high)
