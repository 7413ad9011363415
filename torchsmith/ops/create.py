"""Tensors made of numbers and sizes alone, and triangles cut out of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, expected
from torchsmith.ir.dim import Dim
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import binary
from torchsmith.ops.compare import compare
from torchsmith.ops.expand import expanded
from torchsmith.ops.promote import Operand, as_value, cast, scalar
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.where import Where

aten = torch.ops.aten
Start: TypeAlias = "Dim | float"


@dataclass(frozen=True)
class Arange(Op):
    """start, start + step, … : `size` numbers. start and step: numbers, or sizes. Source: aten.arange."""

    start: Start
    step: Start
    size: Dim
    dtype: torch.dtype

    def infer(self) -> TensorType:
        return TensorType((self.size,), self.dtype)

    def reference(self) -> Tensor:
        wide = torch.float64 if self.dtype.is_floating_point else torch.int64
        return (self.start + self.step * torch.arange(self.size, dtype=wide)).to(self.dtype)


def filled(number: Operand) -> Value:
    """A number in the shape and dtype that the ATen node being converted has."""
    type = expected()
    return expanded(as_value(number, type.dtype), type.shape)


# An empty tensor has whatever numbers; zeros are as good as any, and the same in every run.
@converter(
    aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default,
    aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_permuted.default,
    aten.empty_strided.default, aten.new_empty_strided.default,
)  # fmt: skip
def zeros(*_: Any, **__: Any) -> Value:
    return filled(0)


@converter(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones(*_: Any, **__: Any) -> Value:
    return filled(1)


@converter(aten.full.default, aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor)
def full(like: Any, number: Operand, **_: Any) -> Value:
    return filled(number)


@converter(aten.new_full.default)
def new_full(like: Value, shape: Any, number: Operand, **_: Any) -> Value:
    return filled(number)


@converter(aten.scalar_tensor.default)
def scalar_tensor(number: Operand, **_: Any) -> Value:
    return filled(number)


@converter(aten.arange.default)
def arange_to(end: Start, **_: Any) -> Value:
    return arange(0, end)


@converter(aten.arange.start, aten.arange.start_step)
def arange(start: Start, end: Start, step: Start = 1, **_: Any) -> Value:
    type = expected()
    if not type.dtype.is_floating_point and any(isinstance(number, float) for number in (start, step)):
        raise Unsupported(f"arange from {start} in steps of {step} as {type.dtype}; it takes whole numbers there")
    return Arange(start, step, type.shape[0], type.dtype)()


@converter(aten.linspace.default)
def linspace(start: float, end: float, steps: int, **_: Any) -> Value:
    type = expected()
    if any(isinstance(number, sympy.Expr) for number in (start, end, steps)):
        raise Unsupported(f"linspace({start}, {end}, {steps}) of a symbolic size; it takes numbers")
    return constant(torch.linspace(start, end, steps, dtype=type.dtype), "linspace")


def _rows_and_columns(rows: Dim, columns: Dim) -> tuple[Value, Value]:
    """(rows, 1) and (1, columns): each element's own index."""
    first = reshaped(Arange(0, 1, rows, torch.int64)(), (rows, 1))
    return first, reshaped(Arange(0, 1, columns, torch.int64)(), (1, columns))


@converter(aten.eye.default, aten.eye.m)
def eye(*_: Any, **__: Any) -> Value:
    type = expected()
    return cast(compare("eq", *_rows_and_columns(*type.shape)), type.dtype)


def _triangle(name: str, side: str) -> None:
    @converter(getattr(aten, name).default)
    def convert(x: Value, diagonal: Dim = 0) -> Value:
        rows, columns = _rows_and_columns(*x.type.shape[-2:])
        kept = compare(side, columns, binary("add", rows, diagonal))
        return Where()(kept, x, scalar(0, x.type.dtype))


_triangle("tril", "le")
_triangle("triu", "ge")
