"""Functions of two numbers, applied to elements after broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import broadcast
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import Operand, promote, scalar
from torchsmith.ops.registry import converter

aten = torch.ops.aten

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.true_divide,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


@dataclass(frozen=True)
class Binary(Op):
    """`function` of two tensors of one dtype, broadcast against each other. Source: the ATen op of the same name."""

    function: str

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.dtype != b.dtype:
            raise Unsupported(f"{self.function} of {a} and {b}; both must have one dtype")
        return TensorType(broadcast(a.shape, b.shape), a.dtype)

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return FUNCTIONS[self.function](a, b)

    def __str__(self) -> str:
        return f"Binary[{self.function}]"


def _scaled(function: str, a: Operand, b: Operand, alpha: float) -> Value:
    """a + alpha * b, or a - alpha * b."""
    left, right = promote(a, b)
    if alpha != 1:
        right = Binary("mul")(right, scalar(alpha, right.type.dtype))
    return Binary(function)(left, right)


@converter(aten.add.Tensor, aten.add.Scalar)
def add(a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _scaled("add", a, b, alpha)


@converter(aten.sub.Tensor, aten.sub.Scalar)
def sub(a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _scaled("sub", a, b, alpha)


@converter(aten.mul.Tensor, aten.mul.Scalar)
def mul(a: Operand, b: Operand) -> Value:
    return Binary("mul")(*promote(a, b))
