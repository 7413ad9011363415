"""A choice between two tensors, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import broadcast
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.compare import compare
from torchsmith.ops.promote import Operand, as_value, cast, scalar
from torchsmith.ops.registry import converter
from torchsmith.ops.unary import Unary

aten = torch.ops.aten


@dataclass(frozen=True)
class Where(Op):
    """a where condition (bool) is true, else b; all three broadcast, a and b of one dtype. Source: aten.where.self."""

    moves_data = True

    def infer(self, condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
        if condition.dtype != torch.bool or a.dtype != b.dtype:
            raise Unsupported(f"where({condition}, {a}, {b}); it takes a bool and two tensors of one dtype")
        return TensorType(broadcast(condition.shape, a.shape, b.shape), a.dtype)

    def reference(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition, a, b)


@converter(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(condition: Value, a: Operand, b: Operand) -> Value:
    dtype = expected().dtype
    return Where()(cast(condition, torch.bool), as_value(a, dtype), as_value(b, dtype))


@converter(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(x: Value, mask: Value, value: Operand) -> Value:
    return Where()(mask, as_value(value, x.type.dtype), x)


@converter(aten.nan_to_num.default)
def nan_to_num(x: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Value:
    dtype = x.type.dtype
    if not dtype.is_floating_point:
        return x
    limits = torch.finfo(dtype)
    high, low = (limits.max if posinf is None else posinf), (limits.min if neginf is None else neginf)
    y = Where()(Unary("isnan")(x), scalar(float(nan or 0.0), dtype), x)
    y = Where()(compare("eq", x, float("inf")), scalar(float(high), dtype), y)
    return Where()(compare("eq", x, float("-inf")), scalar(float(low), dtype), y)
