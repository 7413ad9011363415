"""Functions of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.unary import Unary

FUNCTIONS: dict[str, Callable[[ov.Output], Any]] = {
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "exp": ops.exp,
    "log": ops.log,
    "sqrt": ops.sqrt,
    "erf": ops.erf,
    "sin": ops.sin,
    "cos": ops.cos,
    "silu": lambda x: ops.swish(x, ops.constant(1.0, x.get_element_type())),
    "hardswish": ops.hswish,
    "hardsigmoid": lambda x: ops.hard_sigmoid(x, ops.constant(1 / 6, x.get_element_type()), ops.constant(0.5, x.get_element_type())),
    "mish": ops.mish,
    "relu": ops.relu,
    "neg": ops.negative,
    "abs": ops.absolute,
}


@emitter(Unary)
def unary(e: Emission, op: Unary, x: ov.Output) -> Any:
    if op.function not in FUNCTIONS:
        raise Unsupported(f"OpenVINO has no {op.function}")
    return FUNCTIONS[op.function](x)
