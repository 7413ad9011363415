"""PyTorch's type promotion, as casts that stand in the graph."""

from __future__ import annotations

from typing import TypeAlias

import sympy
import torch

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant
from torchsmith.ir.graph import Value
from torchsmith.ops.cast import Cast
from torchsmith.ops.size import Size

Number: TypeAlias = int | float | bool
Operand: TypeAlias = "Value | Number | sympy.Expr"


def cast(x: Value, dtype: torch.dtype) -> Value:
    """x as `dtype`; x itself where it is that already."""
    return x if x.type.dtype == dtype else Cast(dtype)(x)


def widened(x: Value) -> Value:
    """x in float32 where it has fewer bits, for what PyTorch computes that way inside."""
    return cast(x, torch.promote_types(x.type.dtype, torch.float32))


def scalar(number: Operand, dtype: torch.dtype) -> Value:
    """A number, or a symbolic size, as a tensor of no dimensions. Raises Unsupported for a complex number."""
    if isinstance(number, sympy.Expr):
        return cast(Size(number)(), dtype)
    if isinstance(number, complex):
        raise Unsupported(f"the complex number {number}; engines compute in real numbers")
    # by way of the widest dtype, so that a number that does not fit wraps as it does in PyTorch
    wide = torch.float64 if isinstance(number, float) else torch.int64
    return constant(torch.tensor(number, dtype=wide).to(dtype), "scalar")


def as_value(x: Operand, dtype: torch.dtype) -> Value:
    return cast(x, dtype) if isinstance(x, Value) else scalar(x, dtype)


def result_dtype(a: Operand, b: Operand) -> torch.dtype:
    """The dtype in which PyTorch computes a binary operation on tensors, numbers and sizes."""

    def like(x: Operand) -> torch.Tensor | Number:
        if isinstance(x, Value):
            return torch.empty((1,) * x.type.rank, dtype=x.type.dtype, device="meta")
        return 1 if isinstance(x, sympy.Expr) else x

    return torch.result_type(like(a), like(b))


def promote(a: Operand, b: Operand) -> tuple[Value, Value]:
    """Both operands as values of the dtype that PyTorch computes in."""
    dtype = result_dtype(a, b)
    return as_value(a, dtype), as_value(b, dtype)
