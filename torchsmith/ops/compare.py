"""Comparisons of two numbers, element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import broadcast
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary, binary
from torchsmith.ops.promote import Operand, cast, promote
from torchsmith.ops.registry import converter
from torchsmith.ops.unary import Unary

aten = torch.ops.aten

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
}
ALIASES = {"not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"}


@dataclass(frozen=True)
class Compare(Op):
    """`function` of two tensors of one dtype, broadcast against each other; gives bools. NaN is not even equal to itself.

    Source: the ATen op of the same name.
    """

    function: str

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.dtype != b.dtype:
            raise Unsupported(f"{self.function} of {a} and {b}; both must have one dtype")
        return TensorType(broadcast(a.shape, b.shape), torch.bool)

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return FUNCTIONS[self.function](a, b)

    def __str__(self) -> str:
        return f"Compare[{self.function}]"


def compare(function: str, a: Operand, b: Operand) -> Value:
    """A comparison of tensors, numbers and sizes, in the dtype that PyTorch promotes them to."""
    return Compare(function)(*promote(a, b))


def _register(function: str, name: str) -> None:
    @converter(getattr(aten, name).Tensor, getattr(aten, name).Scalar)
    def convert(a: Operand, b: Operand) -> Value:
        return compare(function, a, b)


for _function in FUNCTIONS:
    _register(_function, _function)
for _name, _function in ALIASES.items():
    _register(_function, _name)


@converter(aten.isclose.default)
def isclose(a: Value, b: Value, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Value:
    a, b = promote(a, b)
    close = compare("eq", a, b)
    if rtol or atol:
        a, b = (x if x.type.dtype.is_floating_point else cast(x, torch.get_default_dtype()) for x in (a, b))
        distance = Unary("abs")(binary("sub", a, b))
        allowed = binary("add", Unary("abs")(binary("mul", b, rtol)), atol)
        near = Binary("bitwise_and")(Unary("isfinite")(distance), compare("le", distance, allowed))
        close = Binary("bitwise_or")(close, near)
    if equal_nan and a.type.dtype.is_floating_point:
        close = Binary("bitwise_or")(close, Binary("bitwise_and")(Unary("isnan")(a), Unary("isnan")(b)))
    assert expected().dtype == torch.bool
    return close


def _infinite(name: str, infinity: float) -> None:
    @converter(getattr(aten, name).default)
    def convert(x: Value) -> Value:
        return compare("eq", x, infinity)


_infinite("isposinf", float("inf"))
_infinite("isneginf", float("-inf"))
