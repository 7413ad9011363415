"""Activations with parameters; those without are functions of `Unary`, those that only limit are `Clamp`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import broadcast, floordiv, same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary, binary
from torchsmith.ops.clamp import Clamp
from torchsmith.ops.compare import compare
from torchsmith.ops.promote import cast, scalar, widened
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.slice import sliced
from torchsmith.ops.unary import Unary
from torchsmith.ops.where import Where

aten = torch.ops.aten


def _floating(name: str, x: TensorType) -> TensorType:
    if not x.dtype.is_floating_point:
        raise Unsupported(f"{name} of {x}; it takes a floating dtype")
    return x


@dataclass(frozen=True)
class Gelu(Op):
    """x times the normal distribution's function, or its tanh form. x: floating. Source: aten.gelu.

    approximate: "none" or "tanh".
    """

    approximate: str

    def infer(self, x: TensorType) -> TensorType:
        return _floating("gelu", x)

    def reference(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


@dataclass(frozen=True)
class LeakyRelu(Op):
    """x where x > 0, else slope * x. x: floating. Source: aten.leaky_relu."""

    slope: float

    def infer(self, x: TensorType) -> TensorType:
        return _floating("leaky_relu", x)

    def reference(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


@dataclass(frozen=True)
class Elu(Op):
    """scale * x where x > 0, else scale * alpha * (exp(input_scale * x) - 1). x: floating. Source: aten.elu, selu, celu."""

    alpha: float
    scale: float = 1.0
    input_scale: float = 1.0

    def infer(self, x: TensorType) -> TensorType:
        return _floating("elu", x)

    def reference(self, x: Tensor) -> Tensor:
        y: Tensor = aten.elu(x, self.alpha, self.scale, self.input_scale)
        return y


@dataclass(frozen=True)
class PRelu(Op):
    """x where x > 0, else slope * x; slope: broadcasts to x's shape, x's dtype, floating. Source: aten.prelu."""

    def infer(self, x: TensorType, slope: TensorType) -> TensorType:
        if slope.dtype != x.dtype or broadcast(x.shape, slope.shape) != x.shape:
            raise Unsupported(f"prelu of {x} with slopes {slope}; they must have one dtype and broadcast to the input")
        return _floating("prelu", x)

    def reference(self, x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x > 0, x, slope * x)


@converter(aten.gelu.default)
def gelu(x: Value, *, approximate: str = "none") -> Value:
    return Gelu(approximate)(x)


@converter(aten.leaky_relu.default)
def leaky_relu(x: Value, slope: float = 0.01) -> Value:
    return LeakyRelu(slope)(x)


@converter(aten.elu.default)
def elu(x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    return Elu(alpha, scale, input_scale)(x)


@converter(aten.selu.default)
def selu(x: Value) -> Value:
    return Elu(1.6732632423543772848170429916717, 1.0507009873554804934193349852946)(x)


@converter(aten.celu.default)
def celu(x: Value, alpha: float = 1.0) -> Value:
    return Elu(alpha, 1.0, 1.0 / alpha)(x)


@converter(aten.prelu.default)
def prelu(x: Value, weight: Value) -> Value:
    # one slope for all, or one per channel of (N, C, ...)
    channels = weight.type.numel
    shape = (1, channels, *[1] * (x.type.rank - 2)) if x.type.rank >= 2 else (channels,) * x.type.rank
    return PRelu()(x, reshaped(weight, shape))


@converter(aten._prelu_kernel.default)
def prelu_kernel(x: Value, weight: Value) -> Value:
    return PRelu()(x, weight)


@converter(aten.rrelu.default)
def rrelu(x: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None) -> Value:
    if training:
        raise Unsupported("rrelu draws random slopes in training; call .eval()")
    return LeakyRelu((lower + upper) / 2)(x)


@converter(aten.softplus.default)
def softplus(x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if beta == 1 and threshold >= 20:
        return Unary("softplus")(x)  # beyond 20, softplus(x) - x is less than half a bit of float32
    wide = widened(x)
    scaled = binary("mul", wide, beta)
    curved = binary("div", Unary("softplus")(scaled), beta)
    return cast(Where()(compare("gt", scaled, threshold), wide, curved), x.type.dtype)


@converter(aten.threshold.default)
def threshold(x: Value, limit: float, value: float) -> Value:
    return Where()(compare("le", x, limit), scalar(value, x.type.dtype), x)


@converter(aten.hardshrink.default)
def hardshrink(x: Value, limit: float = 0.5) -> Value:
    return Where()(compare("le", Unary("abs")(x), limit), scalar(0, x.type.dtype), x)


@converter(aten.softshrink.default)
def softshrink(x: Value, limit: float = 0.5) -> Value:
    return Binary("sub")(x, Clamp(-limit, limit)(x))


@converter(aten.glu.default)
def glu(x: Value, dim: int = -1) -> Value:
    size = x.type.shape[dim]
    half = floordiv(size, 2)
    if not same(half * 2, size):
        raise Unsupported(f"glu along a dimension of size {size}, which cannot be shown to be even")
    return Binary("mul")(sliced(x, dim, 0, half), Unary("sigmoid")(sliced(x, dim, half, size)))
