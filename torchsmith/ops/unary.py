"""Functions of one number, applied to every element."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import binary
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten

# Functions that give floats: integers are cast to the default dtype before them.
FLOATING: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": lambda x: F.softplus(x, threshold=40.0),
    "logsigmoid": F.logsigmoid,
}
# Functions that keep the dtype they are given.
KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "round": torch.round,
    "trunc": torch.trunc,
    "bitwise_not": torch.bitwise_not,
}
# Questions: they give bools. The first three are asked of floats, the last one of bools.
ASKING: dict[str, Callable[[Tensor], Tensor]] = {
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isfinite": torch.isfinite,
    "logical_not": torch.logical_not,
}
FUNCTIONS = {**FLOATING, **KEEPING, **ASKING}

# Other names that ATen has for the same function.
ALIASES = {
    "absolute": "abs",
    "negative": "neg",
    "sgn": "sign",
    "fix": "trunc",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctanh": "atanh",
    "log_sigmoid": "logsigmoid",
    "special_expit": "sigmoid",
    "special_erf": "erf",
}
# Their converters have arguments of their own, in activation.py.
_ELSEWHERE = ("softplus", "logsigmoid")
_ROUNDING = ("ceil", "floor", "round", "trunc")


@dataclass(frozen=True)
class Unary(Op):
    """`function` of every element; x: any shape. `round` goes to the even neighbour from half way.

    Floating functions take a floating dtype, `logical_not` takes bool. Source: the ATen op of the same name.
    """

    function: str

    def infer(self, x: TensorType) -> TensorType:
        floating = self.function in FLOATING or self.function in ("isnan", "isinf", "isfinite")
        if floating and not x.dtype.is_floating_point:
            raise Unsupported(f"{self.function} of {x}; it takes a floating dtype")
        if self.function == "logical_not" and x.dtype != torch.bool:
            raise Unsupported(f"{self.function} of {x}; it takes bools")
        return x.with_dtype(torch.bool) if self.function in ASKING else x

    def reference(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](x)

    def __str__(self) -> str:
        return f"Unary[{self.function}]"


def apply(function: str, x: Value) -> Value:
    """A floating or keeping function of x, in the dtype that x has."""
    if function in _ROUNDING and not x.type.dtype.is_floating_point:
        return x
    return Unary(function)(x)


def _register(function: str, name: str) -> None:
    @converter(getattr(aten, name).default)
    def convert(x: Value) -> Value:
        if function == "logical_not":
            return Unary(function)(cast(x, torch.bool))
        if function in ASKING:
            return Unary(function)(x if x.type.dtype.is_floating_point else cast(x, torch.float32))
        return apply(function, cast(x, expected().dtype))


for _function in FUNCTIONS:
    if _function not in _ELSEWHERE:
        _register(_function, _function)
for _name, _function in ALIASES.items():
    _register(_function, _name)


@converter(aten.positive.default)
def positive(x: Value) -> Value:
    return x


@converter(aten.round.decimals)
def round_decimals(x: Value, *, decimals: int) -> Value:
    if not x.type.dtype.is_floating_point:
        return x
    power = 10.0 ** abs(decimals)
    there, back = ("mul", "div") if decimals >= 0 else ("div", "mul")
    wide = cast(x, torch.promote_types(x.type.dtype, torch.float32))
    return cast(binary(back, Unary("round")(binary(there, wide, power)), power), x.type.dtype)


@converter(aten.square.default)
def square(x: Value) -> Value:
    return binary("mul", x, x)


@converter(aten.frac.default)
def frac(x: Value) -> Value:
    return binary("sub", x, Unary("trunc")(x))


def _degrees(name: str, factor: float) -> None:
    @converter(getattr(aten, name).default)
    def convert(x: Value) -> Value:
        return binary("mul", cast(x, expected().dtype), factor)


_degrees("deg2rad", math.pi / 180)
_degrees("rad2deg", 180 / math.pi)
