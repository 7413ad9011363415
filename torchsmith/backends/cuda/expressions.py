"""Triton text of pointwise ops, over names for their operands.

Floating values are float32 in registers (float64 in float64), whatever their dtypes; integers and bools keep theirs, and so do
floats of eight bits, which are quantized numbers. The functions named here are Triton's own, or those of `kernels/common.py` and
`kernels/functions.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.backends.cuda.emission import TRITON_TYPES
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Node

FLOATING: dict[str, str] = {
    "exp": "tl.exp({0})",
    "exp2": "tl.exp2({0})",
    "expm1": "expm1({0})",
    "log": "tl.log({0})",
    "log2": "tl.log2({0})",
    "log10": "(tl.log({0}) * 0.4342944819032518)",
    "log1p": "log1p({0})",
    "sqrt": "sqrt({0})",
    "rsqrt": "tl.rsqrt({0})",
    "reciprocal": "(1.0 / {0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "tan": "tan({0})",
    "sinh": "sinh({0})",
    "cosh": "cosh({0})",
    "tanh": "tanh({0})",
    "asinh": "asinh({0})",
    "acosh": "acosh({0})",
    "erf": "tl.erf({0})",
    "relu": "relu({0})",
    "sigmoid": "sigmoid({0})",
    "silu": "silu({0})",
    "mish": "mish({0})",
    "softplus": "softplus({0})",
    "logsigmoid": "logsigmoid({0})",
    "hardswish": "({0} * clip({0} + 3.0, 0.0, 6.0) * (1.0 / 6.0))",
    "hardsigmoid": "(clip({0} + 3.0, 0.0, 6.0) * (1.0 / 6.0))",
    "ceil": "tl.ceil({0})",
    "floor": "tl.floor({0})",
    "round": "round_even({0})",
    "trunc": "trunc({0})",
    "sign": "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, 0.0))",
    "isnan": "({0} != {0})",
    "isinf": "(tl.abs({0}) == float('inf'))",
    "isfinite": "(tl.abs({0}) < float('inf'))",
}
# Fits that are good to float32 only.
SINGLE: dict[str, str] = {
    **{name: f"{name}({{0}})" for name in ("asin", "acos", "atan", "atanh", "erfc", "erfinv")},
}
# Of floats and integers.
NUMBERS: dict[str, str] = {
    "relu": "tl.where({0} < 0, 0, {0})",
    "neg": "(0 - {0})",
    "abs": "tl.abs({0})",
    "sign": "tl.where({0} > 0, 1, tl.where({0} < 0, -1, 0))",
}
UNSIGNED: dict[str, str] = {"abs": "{0}", "relu": "{0}", "sign": "tl.where({0} > 0, 1, 0)"}
BINARY_FLOATING: dict[str, str] = {
    "div": "({0} / {1})",
    "maximum": "maximum({0}, {1})",
    "minimum": "minimum({0}, {1})",
    "fmax": "tl.maximum({0}, {1})",
    "fmin": "tl.minimum({0}, {1})",
    "pow": "power({0}, {1})",
    "fmod": "fmod({0}, {1})",
    "remainder": "remainder({0}, {1})",
    "div_floor": "div_floor({0}, {1})",
    "div_trunc": "trunc(tl.div_rn({0}, {1}))",
    "hypot": "hypot({0}, {1})",
    "copysign": "copysign({0}, {1})",
    "atan2": "atan2({0}, {1})",
}
BINARY_NUMBERS: dict[str, str] = {"add": "({0} + {1})", "sub": "({0} - {1})", "mul": "({0} * {1})"}
BITWISE: dict[str, str] = {"bitwise_and": "({0} & {1})", "bitwise_or": "({0} | {1})", "bitwise_xor": "({0} ^ {1})"}
BINARY_INTEGERS: dict[str, str] = {
    **BITWISE,
    **{name: f"tl.{name}({{0}}, {{1}})" for name in ("maximum", "minimum")},
    "fmax": "tl.maximum({0}, {1})",
    "fmin": "tl.minimum({0}, {1})",
    "div_trunc": "({0} // {1})",
    "fmod": "({0} % {1})",
    "div_floor": "int_div_floor({0}, {1})",
    "remainder": "int_remainder({0}, {1})",
}
BINARY_BOOLS: dict[str, str] = {
    **BITWISE,
    **dict.fromkeys(("add", "maximum", "fmax"), "({0} | {1})"),
    **dict.fromkeys(("mul", "minimum", "fmin"), "({0} & {1})"),
}
HALVES = (torch.float16, torch.bfloat16)
COARSE = frozenset({"Gelu", "Unary[tanh]", "Unary[sigmoid]", "Unary[silu]"})
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def register_type(dtype: torch.dtype) -> str:
    """What a value is in registers."""
    if dtype.is_floating_point and dtype.itemsize > 1:
        return "fp64" if dtype == torch.float64 else "fp32"
    return TRITON_TYPES[dtype]


def python_type(name: str) -> str:
    """tl's attribute for a Triton type."""
    return _PYTHON_NAMES.get(name, name.replace("i", "int", 1) if name.startswith("i") else name)


_PYTHON_NAMES = {
    **{"fp16": "float16", "fp32": "float32", "fp64": "float64", "bf16": "bfloat16", "fp8e4nv": "float8e4nv"},
    **{"i1": "int1", "u8": "uint8"},
}


def no_integer(number: str, register: str) -> str:
    """A number's text as what masked loads give besides: Triton makes no float8 of an integer. register: the loads' type."""
    return "0.0" if register == "float8e4nv" and number == "0" else number


def literal(number: float) -> str:
    if isinstance(number, float) and not math.isfinite(number):
        return f"float('{number}')"
    return repr(number)


def expression(node: Node, names: Sequence[str]) -> str:
    """Triton text of a pointwise node over names for its inputs. Raises Unsupported, with the reason, for what has none."""
    write = WRITERS.get(type(node.op).__name__)
    text = write(node, names) if write else None
    if text is None:
        given = ", ".join(str(v.type.dtype).removeprefix("torch.") for v in node.inputs)
        raise Unsupported(f"{node.op} of {given} has no Triton expression")
    (output,) = node.outputs
    if register_type(output.type.dtype) in ("fp32", "fp64"):
        return text
    return f"({text}).to(tl.{python_type(register_type(output.type.dtype))})"


def _unary(node: Node, names: Sequence[str]) -> str | None:
    function, dtype = node.op.function, node.inputs[0].type.dtype  # type: ignore[attr-defined]
    if dtype == torch.bool:
        text = "({0} == 0)" if function in ("logical_not", "bitwise_not") else None
    elif function == "bitwise_not":
        text = None if dtype.is_floating_point else "({0} ^ 255)" if dtype == torch.uint8 else "(~{0})"
    elif function in NUMBERS and not (dtype.is_floating_point and function in FLOATING):
        text = UNSIGNED.get(function, NUMBERS[function]) if dtype == torch.uint8 else NUMBERS[function]
    elif not dtype.is_floating_point:
        text = None
    else:
        text = FLOATING.get(function) or (SINGLE.get(function) if dtype != torch.float64 else None)
    return text and text.format(*names)


def _binary(node: Node, names: Sequence[str]) -> str | None:
    function, dtype = node.op.function, node.inputs[0].type.dtype  # type: ignore[attr-defined]
    if dtype == torch.bool:
        text = BINARY_BOOLS.get(function)
    elif dtype.is_floating_point:
        text = _power(names) if function == "pow" else None
        if dtype == torch.float64 and function == "div_trunc":
            text = "trunc({0} / {1})"
        if dtype == torch.float64 and function in ("atan2", "fmod", "remainder", "div_floor"):
            return None
        text = text or BINARY_NUMBERS.get(function) or BINARY_FLOATING.get(function)
    elif function in ("left_shift", "right_shift"):
        text = f"{function}({{0}}, {{1}}, {dtype.itemsize * 8})"
    elif dtype == torch.uint8 and function in ("div_floor", "remainder"):
        text = {"div_floor": "({0} // {1})", "remainder": "({0} % {1})"}[function]
    elif function == "pow":
        text = _power(names) if _number(names[1]) is not None and "." not in names[1] else None
    else:
        text = BINARY_NUMBERS.get(function) or BINARY_INTEGERS.get(function)
    return text and text.format(*names)


def _power(names: Sequence[str]) -> str | None:
    """A power by a known number, where that is simpler."""
    exponent = _number(names[1])
    if exponent == 0.5:
        return "sqrt({0})"
    if exponent == -0.5:
        return "tl.rsqrt({0})"
    if exponent == -1 and "." in names[1]:
        return "(1.0 / {0})"
    if exponent in (1, 2, 3, 4):
        return "(" + " * ".join(["{0}"] * int(exponent)) + ")"
    return None


def _number(name: str) -> float | None:
    """The number that an operand's text is."""
    try:
        return float(name.strip("()"))
    except ValueError:
        return None


def _clamp(node: Node, names: Sequence[str]) -> str:
    op: Any = node.op
    floating = node.inputs[0].type.dtype.is_floating_point
    maximum, minimum = ("maximum", "minimum") if floating else ("tl.maximum", "tl.minimum")
    text = names[0]
    if op.low is not None:
        text = f"{maximum}({text}, {literal(float(op.low) if floating else int(op.low))})"
    if op.high is not None:
        text = f"{minimum}({text}, {literal(float(op.high) if floating else int(op.high))})"
    return text


def _cast(node: Node, names: Sequence[str]) -> str:
    given, wanted = node.inputs[0].type.dtype, node.outputs[0].type.dtype
    if wanted == torch.bool:
        return f"({names[0]} != 0)"
    if given.is_floating_point and wanted.is_floating_point and register_type(given) == register_type(wanted):
        return names[0]
    if given.is_floating_point and wanted in (torch.uint8, torch.int8, torch.int16):
        return f"{names[0]}.to(tl.int32)"  # out of range they wrap around, as on the CPU
    if given in (torch.int8, torch.uint8) and register_type(wanted) == "fp32":
        return f"whole({names[0]}, 0.0)"
    return f"{names[0]}.to(tl.{python_type(register_type(wanted))})"


@dataclass(frozen=True)
class Steps:
    """A quantized value less its zero point: scaled, rounded, within low..high. Everything is text; zero: "" for none."""

    scaled: str
    low: str
    high: str
    zero: str

    def number(self) -> str:
        return f"rounded({self.scaled}, {self.low}, {self.high})"

    def never_negative(self) -> bool:
        """Whether what is less than 0 becomes 0."""
        return _number(self.low) == 0


def steps_of(node: Node, names: Sequence[str]) -> Steps | None:
    """Of a `Quantize` of one scale to integers; None for others.

    Multiplied by the reciprocal, as the reference does, which is a number here where the scale is one.
    """
    op: Any = node.op
    if op.axis is not None or op.dtype.is_floating_point:
        return None
    zero = _number(names[2]) if len(names) > 2 else 0.0
    if zero is None:
        wide = f"{names[2]}.to(tl.float32)"
        return Steps(scaled_text(names), f"{float(op.low)} - {wide}", f"{float(op.high)} - {wide}", zero_text(names))
    return Steps(scaled_text(names), repr(op.low - zero), repr(op.high - zero), zero_text(names))


def zero_text(names: Sequence[str]) -> str:
    """The zero point among the operands of a pair's half, as an integer; "" where there is none."""
    if len(names) < 3:
        return ""
    zero = _number(names[2])
    return f"{names[2]}.to(tl.int32)" if zero is None else repr(int(zero))


def scaled_text(names: Sequence[str]) -> str:
    scale = _number(names[1])
    if scale == 1.0:
        return names[0]
    return f"{names[0]} * {f'tl.div_rn(1.0, {names[1]})' if scale is None else literal((1.0 / torch.tensor(scale)).item())}"


def _quantize(node: Node, names: Sequence[str]) -> str | None:
    op: Any = node.op
    if op.axis is None and op.dtype.is_floating_point:
        return scaled_text(names)  # GPUs' casts to these saturate: PTX ISA, cvt.rn.satfinite.e4m3x2.f32
    steps = steps_of(node, names)
    if steps is None:
        return None
    return f"quantized({steps.scaled}, {steps.low}, {steps.high})" + (f" + {steps.zero}" if steps.zero else "")


def _dequantize(node: Node, names: Sequence[str]) -> str | None:
    op: Any = node.op
    if op.axis is not None:
        return None
    register = register_type(op.dtype)
    if node.inputs[0].type.dtype in (torch.int8, torch.uint8) and register == "fp32":
        zero = _number(names[2]) if len(names) > 2 else 0.0
        if zero is not None:
            return f"(whole({names[0]}, {zero!r}) * {names[1]})"
    number = f"{names[0]}.to(tl.{python_type(register)})"
    if len(names) > 2:
        number = f"({number} - {names[2]})"
    return f"({number} * {names[1]})"


def _elu(node: Node, names: Sequence[str]) -> str:
    op: Any = node.op
    curve = f"{literal(op.alpha * op.scale)} * expm1({names[0]} * {literal(float(op.input_scale))})"
    return f"tl.where({names[0]} > 0, {names[0]} * {literal(float(op.scale))}, {curve})"


def coarse_text(node: Node, names: Sequence[str]) -> str | None:
    """Of a function of half precision that has a coarser one, for values that are rounded to int8; None of others."""
    if not has_coarse(node):
        return None
    op: Any = node.op
    if type(op).__name__ == "Gelu":
        return f"{'gelu_tanh_coarse' if op.approximate == 'tanh' else 'gelu_coarse'}({names[0]})"
    return f"{op.function}_coarse({names[0]})"


def has_coarse(node: Node) -> bool:
    """Whether `coarse_text` has something for the node."""
    return str(node.op).partition("(")[0] in COARSE and node.inputs[0].type.dtype in HALVES


def _gelu(node: Node, names: Sequence[str]) -> str:
    op: Any = node.op
    half = node.inputs[0].type.dtype in HALVES
    return f"{'gelu_tanh' if op.approximate == 'tanh' else 'gelu_half' if half else 'gelu'}({names[0]})"


WRITERS: dict[str, Callable[[Node, Sequence[str]], str | None]] = {
    "Unary": _unary,
    "Binary": _binary,
    "Compare": lambda node, n: f"({n[0]} {COMPARE[node.op.function]} {n[1]})",  # type: ignore[attr-defined]
    "Where": lambda node, n: f"tl.where({n[0]}, {n[1]}, {n[2]})",
    "Clamp": _clamp,
    "Cast": _cast,
    "Gelu": _gelu,
    "Quantize": _quantize,
    "Dequantize": _dequantize,
    "LeakyRelu": lambda node, n: f"tl.where({n[0]} > 0, {n[0]}, {n[0]} * {literal(float(node.op.slope))})",  # type: ignore[attr-defined]
    "PRelu": lambda node, n: f"tl.where({n[0]} > 0, {n[0]}, {n[1]} * {n[0]})",
    "Elu": _elu,
}
