"""Softmax and its logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class Softmax(Op):
    """exp(x) over its sum along `dim` (not negative), computed in float32 at least. x: floating. Source: aten.softmax."""

    dim: int

    def infer(self, x: TensorType) -> TensorType:
        return _checked(x, self.dim)

    def reference(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self.dim)


@dataclass(frozen=True)
class LogSoftmax(Op):
    """x minus the logarithm of the sum of exp(x) along `dim` (not negative). x: floating. Source: aten.log_softmax."""

    dim: int

    def infer(self, x: TensorType) -> TensorType:
        return _checked(x, self.dim)

    def reference(self, x: Tensor) -> Tensor:
        return torch.log_softmax(x, self.dim)


def _checked(x: TensorType, dim: int) -> TensorType:
    if not x.dtype.is_floating_point or not 0 <= dim < x.rank:
        raise Unsupported(f"a softmax of {x} along {dim}; it takes a floating dtype and one of its dimensions")
    return x


def _along(op: type[Softmax] | type[LogSoftmax], x: Value, dim: int, dtype: torch.dtype | None) -> Value:
    x = cast(x, dtype or x.type.dtype)
    if x.type.rank == 0:
        return reshaped(op(0)(reshaped(x, (1,))), ())
    return op(dim % x.type.rank)(x)


@converter(aten.softmax.int)
def softmax(x: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _along(Softmax, x, dim, dtype)


@converter(aten._softmax.default)
def softmax_core(x: Value, dim: int, half_to_float: bool) -> Value:
    return _along(Softmax, x, dim, torch.float32 if half_to_float else None)


@converter(aten.log_softmax.int)
def log_softmax(x: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _along(LogSoftmax, x, dim, dtype)


@converter(aten._log_softmax.default)
def log_softmax_core(x: Value, dim: int, half_to_float: bool) -> Value:
    return _along(LogSoftmax, x, dim, torch.float32 if half_to_float else None)
