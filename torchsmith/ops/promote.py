"""PyTorch's type promotion, as casts that stand in the graph."""

from __future__ import annotations

from typing import Union

import sympy
import torch

from torchsmith.ir.builder import constant
from torchsmith.ir.graph import Value
from torchsmith.ops.cast import Cast
from torchsmith.ops.size import Size

Number = Union[int, float, bool]
Operand = Union[Value, Number, sympy.Expr]


def cast(x: Value, dtype: torch.dtype) -> Value:
    """x as `dtype`; x itself where it is that already."""
    return x if x.type.dtype == dtype else Cast(dtype)(x)


def scalar(number: Number | sympy.Expr, dtype: torch.dtype) -> Value:
    """A number, or a symbolic size, as a tensor of no dimensions."""
    if isinstance(number, sympy.Expr):
        return cast(Size(number)(), dtype)
    return constant(torch.tensor(number, dtype=dtype), "scalar")


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
