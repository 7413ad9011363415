"""Activations with parameters."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import like, select, wide
from torchsmith.backends.tensorrt.emitters.unary import expm1
from torchsmith.ops.activation import Elu, Gelu, LeakyRelu, PRelu


@emitter(Gelu)
def gelu(e: Emission, op: Gelu, x: Any) -> Any:
    return e.activation("GELU_ERF" if op.approximate == "none" else "GELU_TANH", x)


@emitter(LeakyRelu)
def leaky_relu(e: Emission, op: LeakyRelu, x: Any) -> Any:
    return e.activation("LEAKY_RELU", x, op.slope)


@emitter(Elu)
def elu(e: Emission, op: Elu, x: Any) -> Any:
    if op.scale == op.input_scale == 1:
        return e.activation("ELU", x, op.alpha)
    if op.input_scale == 1:
        return e.activation("SELU", x, op.alpha, op.scale)
    y = wide(e, x)
    below = expm1(e, e.binary("PROD", y, like(e, op.input_scale, y)))
    below = e.binary("PROD", below, like(e, op.scale * op.alpha, y))
    above = e.binary("PROD", y, like(e, op.scale, y))
    return e.to(select(e, e.binary("GREATER", y, like(e, 0, y)), above, below), e.node.inputs[0].type.dtype)


@emitter(PRelu)
def prelu(e: Emission, op: PRelu, x: Any, slope: Any) -> Any:
    return select(e, e.binary("GREATER", x, like(e, 0, x)), x, e.binary("PROD", slope, x))
