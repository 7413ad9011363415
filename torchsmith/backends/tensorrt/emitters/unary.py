"""Functions of one number.

`relu` is a layer of its own, which others are fused with; TensorRT does not say what it makes of NaN. Functions that are
composed here compute 16-bit floats in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import (
    SMALL,
    dtype_of,
    either,
    is_float,
    is_nan,
    like,
    no,
    polynomial,
    select,
    wide,
    wrapped,
)
from torchsmith.errors import Unsupported
from torchsmith.ops.unary import Unary

Function = Callable[[Emission, Any], Any]

# erfc(x) = t * exp(-x * x + sum of these * powers of t), t = 1 / (1 + x / 2), highest power first; for x >= 0, relatively
# precise to 1.2e-7 (Press et al., Numerical Recipes, section 6.2)
ERFC_FIT = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223,
)  # fmt: skip
# erfinv(x) / x by powers of w - 2.5 and of sqrt(w) - 3, with w = -log(1 - x * x), highest first (Giles, Approximating the
# erfinv function, 2012)
ERFINV_NEAR = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164, 0.246640727,
    1.50140941,
)  # fmt: skip
ERFINV_FAR = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047, 1.00167406,
    2.83297682,
)  # fmt: skip


def _layer(name: str) -> Function:
    return lambda e, x: e.unary(name, x)


def _log_to(base: float) -> Function:
    return lambda e, x: e.binary("PROD", e.unary("LOG", x), like(e, 1 / math.log(base), x))


def truncated(e: Emission, x: Any) -> Any:
    return select(e, e.binary("LESS", x, like(e, 0, x)), e.unary("CEIL", x), e.unary("FLOOR", x))


def _sign(e: Emission, x: Any) -> Any:
    """0 for NaN."""
    zero = like(e, 0, x)
    above, below = (e.to(e.binary(order, x, zero), dtype_of(x)) for order in ("GREATER", "LESS"))
    return e.binary("SUB", above, below)


def _log1p_near(e: Emission, x: Any) -> Any:
    """log(1 + x) for x from -0.5 to 1, with all digits of small x: 2 atanh(x / (2 + x)) by its series."""
    s = e.binary("DIV", x, e.binary("SUM", x, like(e, 2, x)))
    series = polynomial(e, e.binary("PROD", s, s), [2 / n for n in range(15, 0, -2)])
    return e.binary("PROD", s, series)


def _log1p(e: Emission, x: Any) -> Any:
    is_near = e.binary("LESS", e.unary("ABS", x), like(e, 0.5, x))
    return select(e, is_near, _log1p_near(e, x), e.unary("LOG", e.binary("SUM", x, like(e, 1, x))))


def expm1(e: Emission, x: Any) -> Any:
    """exp(x) - 1; near zero by its series, which loses no digits there."""
    series = e.binary("PROD", x, polynomial(e, x, [1 / math.factorial(n) for n in range(10, 0, -1)]))
    is_near = e.binary("LESS", e.unary("ABS", x), like(e, 0.5, x))
    return select(e, is_near, series, e.binary("SUB", e.unary("EXP", x), like(e, 1, x)))


def _softplus_of_minus_abs(e: Emission, x: Any) -> Any:
    """log(1 + exp(-|x|))."""
    return _log1p_near(e, e.unary("EXP", e.unary("NEG", e.unary("ABS", x))))


def _softplus(e: Emission, x: Any) -> Any:
    return e.binary("SUM", e.activation("RELU", x), _softplus_of_minus_abs(e, x))


def _logsigmoid(e: Emission, x: Any) -> Any:
    below = e.unary("NEG", e.activation("RELU", e.unary("NEG", x)))
    return e.binary("SUB", below, _softplus_of_minus_abs(e, x))


def _mish(e: Emission, x: Any) -> Any:
    """x * tanh(log(1 + exp(x))), where the tanh is a quotient of polynomials of u = exp(-|x|)."""
    u = e.unary("EXP", e.unary("NEG", e.unary("ABS", x)))
    right = e.binary("GREATER", x, like(e, 0, x))
    top = select(e, right, polynomial(e, u, (2, 1)), polynomial(e, u, (1, 2, 0)))
    rest = select(e, right, polynomial(e, u, (2, 0, 0)), like(e, 2, x))
    return e.binary("PROD", x, e.binary("DIV", top, e.binary("SUM", top, rest)))


def _silu(e: Emission, x: Any) -> Any:
    return e.binary("PROD", x, e.activation("SIGMOID", x))


def _hardsigmoid(e: Emission, x: Any) -> Any:
    return e.activation("HARD_SIGMOID", x, 1 / 6, 0.5)


def _erfc(e: Emission, x: Any) -> Any:
    """1 - erf(x); relatively precise also where that is next to nothing."""
    size = e.unary("ABS", x)
    t = e.unary("RECIP", polynomial(e, size, (0.5, 1)))
    exponent = e.binary("SUB", polynomial(e, t, ERFC_FIT), e.binary("PROD", size, size))
    right = e.binary("PROD", t, e.unary("EXP", exponent))
    near = e.binary("SUB", like(e, 1, x), e.unary("ERF", x))
    return select(e, e.binary("GREATER", x, like(e, 0.5, x)), right, near)


def _erfinv(e: Emission, x: Any) -> Any:
    one = like(e, 1, x)
    inside = e.binary("PROD", e.binary("SUB", one, x), e.binary("SUM", one, x))
    w = e.unary("NEG", e.unary("LOG", inside))
    near = polynomial(e, e.binary("SUB", w, like(e, 2.5, x)), ERFINV_NEAR)
    far = polynomial(e, e.binary("SUB", e.unary("SQRT", w), like(e, 3, x)), ERFINV_FAR)
    factor = select(e, e.binary("LESS", w, like(e, 5, x)), near, far)
    at_the_end = e.binary("EQUAL", e.unary("ABS", x), one)
    return e.binary("PROD", x, select(e, at_the_end, like(e, math.inf, x), factor))


def _isfinite(e: Emission, x: Any) -> Any:
    return no(e, either(e, e.unary("ISINF", x), is_nan(e, x)))


# Layers that compute in the dtype they are given.
DIRECT: dict[str, Function] = {
    **{name: _layer(name.upper()) for name in ("exp", "log", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh")},
    **{name: _layer(name.upper()) for name in ("asinh", "acosh", "atanh", "erf", "neg", "abs", "ceil", "floor", "round")},
    "isnan": is_nan,
    "isinf": _layer("ISINF"),
    "isfinite": _isfinite,
    "reciprocal": _layer("RECIP"),
    "tanh": lambda e, x: e.activation("TANH", x),
    "sigmoid": lambda e, x: e.activation("SIGMOID", x),
    "relu": lambda e, x: e.activation("RELU", x),
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda e, x: e.binary("PROD", x, _hardsigmoid(e, x)),
    "trunc": truncated,
    "sign": _sign,
}
COMPOSED: dict[str, Function] = {
    "exp2": lambda e, x: e.binary("POW", like(e, 2, x), x),
    "expm1": expm1,
    "log2": _log_to(2),
    "log10": _log_to(10),
    "log1p": _log1p,
    "rsqrt": lambda e, x: e.unary("RECIP", e.unary("SQRT", x)),
    "softplus": _softplus,
    "logsigmoid": _logsigmoid,
    "mish": _mish,
    "erfc": _erfc,
    "erfinv": _erfinv,
}
ON_INTEGERS: dict[str, Function] = {
    "relu": lambda e, x: e.binary("MAX", x, like(e, 0, x)),
    "neg": _layer("NEG"),
    "abs": _layer("ABS"),
    "sign": _layer("SIGN"),
    "bitwise_not": lambda e, x: e.binary("SUB", like(e, -1, x), x),
    **{name: lambda e, x: x for name in ("ceil", "floor", "round", "trunc")},
}
ON_BOOLS: dict[str, Function] = {
    "logical_not": no,
    "bitwise_not": no,
    "sign": lambda e, x: x,
}


@emitter(Unary)
def unary(e: Emission, op: Unary, x: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    if dtype == torch.bool:
        return _known(ON_BOOLS, op, "of bools")(e, x)
    if not is_float(x):
        y = _known(ON_INTEGERS, op, "of integers")(e, e.to(x, torch.int32) if dtype == torch.int8 else x)
        return wrapped(e, y, dtype) if dtype in SMALL else y
    if op.function in COMPOSED:
        return e.to(COMPOSED[op.function](e, wide(e, x)), dtype)
    return _known(DIRECT, op, "")(e, x)


def _known(functions: dict[str, Function], op: Unary, of: str) -> Function:
    if op.function not in functions:
        raise Unsupported(f"TensorRT has no {op.function} {of}".strip())
    return functions[op.function]
