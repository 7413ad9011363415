"""Functions of one number, applied to every element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten

# Functions that give floats: integers are cast to the default dtype before them.
FLOATING: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "silu": torch.nn.functional.silu,
    "hardswish": torch.nn.functional.hardswish,
    "hardsigmoid": torch.nn.functional.hardsigmoid,
    "mish": torch.nn.functional.mish,
}
# Functions that keep the dtype they are given.
KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "neg": torch.neg,
    "abs": torch.abs,
}
FUNCTIONS = {**FLOATING, **KEEPING}


@dataclass(frozen=True)
class Unary(Op):
    """`function` of every element; x: any shape. Source: the ATen op of the same name."""

    function: str

    def infer(self, x: TensorType) -> TensorType:
        if self.function in FLOATING and not x.dtype.is_floating_point:
            raise Unsupported(f"{self.function} of {x}; it takes a floating dtype")
        return x

    def reference(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](x)

    def __str__(self) -> str:
        return f"Unary[{self.function}]"


def _register(function: str) -> None:
    @converter(getattr(aten, function).default)
    def convert(x: Value) -> Value:
        return Unary(function)(cast(x, expected().dtype))


for _function in FUNCTIONS:
    _register(_function)
