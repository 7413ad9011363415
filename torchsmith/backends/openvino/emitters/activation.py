"""Activations with parameters. NaN may come out of Gelu for infinity, where PyTorch gives infinity."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.activation import Elu, Gelu, LeakyRelu, PRelu


@emitter(Gelu)
def gelu(e: Emission, op: Gelu, x: ov.Output) -> Any:
    return ops.gelu(x, "erf" if op.approximate == "none" else "tanh")


@emitter(LeakyRelu)
def leaky_relu(e: Emission, op: LeakyRelu, x: ov.Output) -> Any:
    return ops.prelu(x, ops.constant([op.slope], x.get_element_type()))


@emitter(Elu)
def elu(e: Emission, op: Elu, x: ov.Output) -> Any:
    if op.scale == op.input_scale == 1:
        return ops.elu(x, op.alpha)
    if op.input_scale == 1:
        return ops.selu(x, e.number(op.alpha, x), e.number(op.scale, x))
    below = ops.elu(ops.multiply(ops.minimum(x, e.number(0, x)), e.number(op.input_scale, x)), 1.0)
    above = ops.multiply(ops.relu(x), e.number(op.scale, x))
    return ops.add(above, ops.multiply(below, e.number(op.scale * op.alpha, x)))


@emitter(PRelu)
def prelu(e: Emission, op: PRelu, x: ov.Output, slope: ov.Output) -> Any:
    return ops.add(ops.relu(x), ops.multiply(slope, ops.minimum(x, e.number(0, x))))
