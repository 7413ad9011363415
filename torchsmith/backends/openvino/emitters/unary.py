"""Functions of one number.

OpenVINO differs from PyTorch for NaN: `relu` and `hardsigmoid` turn it into a number, `exp` into infinity, and `sign`
keeps it. `exp` overflows from 88.4 on, 0.3 before float32 does. `erf` is absolutely precise, not relatively, near 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.unary import Unary

# log(1 + u) / u on [0, 1]: a Chebyshev fit with a relative error of 3e-08, lowest power first
LOG1P_FIT = (
    0.9999999706, -0.4999950178, 0.3331927464, -0.2484438836, 0.1911148507,
    -0.1367485753, 0.0783624601, -0.02958887217, 0.005253522959,
)  # fmt: skip


def _like(x: ov.Output, value: float) -> Any:
    return ops.constant(value, x.get_element_type())


def _trunc(x: ov.Output) -> Any:
    return ops.multiply(ops.sign(x), ops.floor(ops.abs(x)))


def _log1p(x: ov.Output) -> Any:
    """log(1 + x), also where adding 1 loses most of x: what was lost is put back in first order."""
    one = _like(x, 1.0)
    w = ops.add(x, one)
    lost = ops.subtract(x, ops.subtract(w, one))
    near = ops.add(ops.log(w), ops.divide(lost, w))
    return ops.select(ops.less(ops.abs(x), _like(x, 0.5)), near, ops.log(w))


def _expm1(x: ov.Output) -> Any:
    """exp(x) - 1; near zero by the tangent of half the angle, which loses nothing there."""
    one = _like(x, 1.0)
    t = ops.tanh(ops.multiply(x, _like(x, 0.5)))
    near = ops.divide(ops.add(t, t), ops.subtract(one, t))
    return ops.select(ops.less(ops.abs(x), one), near, ops.subtract(ops.exp(x), one))


def _softplus_of_minus_abs(x: ov.Output) -> Any:
    """log(1 + exp(-|x|)). OpenVINO's SoftPlus is slower, and negative below -16."""
    u = ops.exp(ops.negative(ops.abs(x)))
    sum = _like(x, LOG1P_FIT[-1])
    for coefficient in LOG1P_FIT[-2::-1]:
        sum = ops.add(ops.multiply(sum, u), _like(x, coefficient))
    return ops.multiply(sum, u)


FUNCTIONS: dict[str, Callable[[ov.Output], Any]] = {
    "exp": ops.exp,
    "exp2": lambda x: ops.power(_like(x, 2.0), x),
    "expm1": _expm1,
    "log": ops.log,
    "log2": lambda x: ops.multiply(ops.log(x), _like(x, 1 / math.log(2))),
    "log10": lambda x: ops.multiply(ops.log(x), _like(x, 1 / math.log(10))),
    "log1p": _log1p,
    "sqrt": ops.sqrt,
    "rsqrt": lambda x: ops.divide(_like(x, 1.0), ops.sqrt(x)),
    "reciprocal": lambda x: ops.divide(_like(x, 1.0), x),
    "sin": ops.sin,
    "cos": ops.cos,
    "tan": ops.tan,
    "asin": ops.asin,
    "acos": ops.acos,
    "atan": ops.atan,
    "sinh": ops.sinh,
    "cosh": ops.cosh,
    "tanh": ops.tanh,
    "asinh": ops.asinh,
    "acosh": ops.acosh,
    "atanh": ops.atanh,
    "erf": ops.erf,
    "sigmoid": ops.sigmoid,
    "silu": lambda x: ops.swish(x, _like(x, 1.0)),
    "mish": ops.mish,
    "hardswish": ops.hswish,
    "hardsigmoid": ops.hsigmoid,
    "softplus": lambda x: ops.add(ops.relu(x), _softplus_of_minus_abs(x)),
    "logsigmoid": lambda x: ops.subtract(ops.minimum(x, _like(x, 0.0)), _softplus_of_minus_abs(x)),
    "relu": ops.relu,
    "neg": ops.negative,
    "abs": ops.absolute,
    "sign": ops.sign,
    "ceil": ops.ceiling,
    "floor": ops.floor,
    "round": lambda x: ops.round(x, "half_to_even"),
    "trunc": _trunc,
    "bitwise_not": ops.bitwise_not,
    "isnan": ops.is_nan,
    "isinf": ops.is_inf,
    "isfinite": ops.is_finite,
    "logical_not": ops.logical_not,
}


@emitter(Unary)
def unary(e: Emission, op: Unary, x: ov.Output) -> Any:
    if op.function not in FUNCTIONS:
        raise Unsupported(f"OpenVINO has no {op.function}")
    kind = x.get_element_type()
    if op.function == "relu" and kind.is_integral():
        return ops.maximum(x, _like(x, 0))  # its Relu rounds integers to float32
    if op.function == "neg" and kind == ov.Type.u8:
        raise Unsupported("OpenVINO has no negation of uint8; cast to a signed dtype before it")
    return FUNCTIONS[op.function](x)
