"""Functions of two numbers, applied to elements after broadcasting."""

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
from torchsmith.ops.promote import Operand, as_value, cast, promote, scalar
from torchsmith.ops.registry import converter

aten = torch.ops.aten

# Of any dtype; on bools `add` is or, `mul` is and.
ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "div_floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "div_trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "remainder": torch.remainder,
    "fmod": torch.fmod,
}
FLOATING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "div": torch.true_divide,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "copysign": torch.copysign,
}
# Of integers and bools; the shifts of integers alone.
BITWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bitwise_and": torch.bitwise_and,
    "bitwise_or": torch.bitwise_or,
    "bitwise_xor": torch.bitwise_xor,
    "left_shift": torch.bitwise_left_shift,
    "right_shift": torch.bitwise_right_shift,
}
FUNCTIONS = {**ARITHMETIC, **FLOATING, **BITWISE}


@dataclass(frozen=True)
class Binary(Op):
    """`function` of two tensors of one dtype, broadcast against each other.

    `remainder` has the divisor's sign, `fmod` the dividend's; `right_shift` keeps the sign. Source: the ATen op of the
    same name; `div_floor` and `div_trunc` are aten.div.Tensor_mode.
    """

    function: str

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.dtype != b.dtype:
            raise Unsupported(f"{self.function} of {a} and {b}; both must have one dtype")
        if self.function in FLOATING and not a.dtype.is_floating_point:
            raise Unsupported(f"{self.function} of {a} and {b}; it takes a floating dtype")
        if self.function in BITWISE and (a.dtype.is_floating_point or (a.dtype == torch.bool and "shift" in self.function)):
            raise Unsupported(f"{self.function} of {a} and {b}; it takes integers")
        return TensorType(broadcast(a.shape, b.shape), a.dtype)

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        return FUNCTIONS[self.function](a, b)

    def __str__(self) -> str:
        return f"Binary[{self.function}]"


def binary(function: str, a: Operand, b: Operand) -> Value:
    """`function` of tensors, numbers and sizes, in the dtype that PyTorch promotes them to."""
    return Binary(function)(*promote(a, b))


def _scaled(function: str, a: Operand, b: Operand, alpha: float) -> Value:
    """a + alpha * b, or a - alpha * b."""
    left, right = promote(a, b)
    if alpha != 1:
        right = Binary("mul")(right, scalar(alpha, right.type.dtype))
    return Binary(function)(left, right)


@converter(aten.add.Tensor, aten.add.Scalar)
def add(a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _scaled("add", a, b, alpha)


@converter(aten.sub.Tensor, aten.sub.Scalar, aten.subtract.Tensor, aten.subtract.Scalar)
def sub(a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _scaled("sub", a, b, alpha)


@converter(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _scaled("sub", b, a, alpha)


@converter(
    aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode,
    aten.divide.Tensor, aten.divide.Scalar, aten.divide.Tensor_mode, aten.divide.Scalar_mode,
    aten.true_divide.Tensor, aten.true_divide.Scalar,
)  # fmt: skip
def div(a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode:
        return binary(f"div_{rounding_mode}", a, b)
    # integers give floats
    dtype = expected().dtype
    return Binary("div")(as_value(a, dtype), as_value(b, dtype))


@converter(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(a: Operand, b: Operand) -> Value:
    return binary("div_floor", a, b)


def _register(function: str, *names: str) -> None:
    overloads = (getattr(getattr(aten, name.partition(".")[0]), name.partition(".")[2]) for name in names)

    @converter(*overloads)
    def convert(a: Operand, b: Operand) -> Value:
        dtype = expected().dtype if function in FLOATING else None
        return binary(function, a, b) if dtype is None else Binary(function)(as_value(a, dtype), as_value(b, dtype))


_register("mul", "mul.Tensor", "mul.Scalar", "multiply.Tensor", "multiply.Scalar")
_register("pow", "pow.Tensor_Tensor", "pow.Scalar")
_register("maximum", "maximum.default", "max.other")
_register("minimum", "minimum.default", "min.other")
_register("fmax", "fmax.default")
_register("fmin", "fmin.default")
_register("remainder", "remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
_register("fmod", "fmod.Tensor", "fmod.Scalar")
_register("atan2", "atan2.default", "arctan2.default")
_register("hypot", "hypot.default")
_register("copysign", "copysign.Tensor", "copysign.Scalar")
for _name in ("and", "or", "xor"):
    _overloads = (f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"bitwise_{_name}.Scalar_Tensor")
    _register(f"bitwise_{_name}", *_overloads, f"__{_name}__.Tensor", f"__{_name}__.Scalar")
for _name, _side in (("left_shift", "l"), ("right_shift", "r")):
    _overloads = (f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Tensor_Scalar", f"bitwise_{_name}.Scalar_Tensor")
    _register(_name, *_overloads, f"__{_side}shift__.Tensor", f"__{_side}shift__.Scalar")


@converter(aten.pow.Tensor_Scalar)
def pow_number(x: Value, exponent: Operand) -> Value:
    if exponent == 2 and isinstance(exponent, int) and not x.type.dtype.is_floating_point:
        return binary("mul", x, x)  # exact in every engine
    return binary("pow", x, exponent)


def _logical(name: str) -> None:
    @converter(getattr(aten, f"logical_{name}").default)
    def convert(a: Value, b: Value) -> Value:
        return Binary(f"bitwise_{name}")(cast(a, torch.bool), cast(b, torch.bool))


for _name in ("and", "or", "xor"):
    _logical(_name)


@converter(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(start: Value, end: Value, weight: Operand) -> Value:
    return binary("add", start, binary("mul", weight, binary("sub", end, start)))


@converter(aten.addcmul.default)
def addcmul(x: Value, a: Value, b: Value, *, value: float = 1) -> Value:
    return _scaled("add", x, binary("mul", a, b), value)


@converter(aten.addcdiv.default)
def addcdiv(x: Value, a: Value, b: Value, *, value: float = 1) -> Value:
    return _scaled("add", x, binary("div", a, b), value)
