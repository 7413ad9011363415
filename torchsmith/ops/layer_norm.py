"""Layer normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, current
from torchsmith.ir.dim import Dim
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops._moments import moments
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerNorm(Op):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the statistics of the last `dims` dimensions.

    weight, and bias after it, have these dimensions, and may be missing; the statistics are float32 at least.
    Source: aten.layer_norm.
    """

    dims: int
    eps: float

    def infer(self, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None) -> TensorType:
        if not 1 <= self.dims <= x.rank or not x.dtype.is_floating_point:
            raise Unsupported(f"layer norm of the last {self.dims} dimensions of {x}; it takes a floating dtype")
        for given in (weight, bias):
            check_parameter(given, x, x.shape[-self.dims :])
        return x

    def reference(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-self.dims :], weight, bias, self.eps)


def check_parameter(given: TensorType | None, x: TensorType, shape: Sequence[Dim]) -> None:
    """Raise Unsupported unless `given`, where there is one, has this shape and x's dtype."""
    if given is not None and not given.matches(TensorType(tuple(shape), x.dtype)):
        raise Unsupported(f"a norm of {x} with a parameter {given}; it takes {TensorType(tuple(shape), x.dtype)}")


def scaled(op: Op, x: Value, weight: Value | None, bias: Value | None) -> Value:
    """`op` on x and its parameters. A bias alone gets a weight of ones; wider parameters than x make it compute in theirs."""
    if bias is not None and weight is None:
        if not bias.type.is_static:
            raise Unsupported(f"a norm with a bias of symbolic shape {bias.type}")
        weight = constant(torch.ones(bias.type.shape, dtype=bias.type.dtype), "ones")
    given = [p for p in (weight, bias) if p is not None]
    if all(p.type.dtype == x.type.dtype for p in given):
        return op(x, *given)
    return cast(op(*(cast(value, torch.float32) for value in (x, *given))), x.type.dtype)


@converter(aten.layer_norm.default)
def layer_norm(
    x: Value,
    shape: Sequence[Dim],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    return scaled(LayerNorm(len(shape), eps), x, weight, bias)


@converter(aten.native_layer_norm.default)
def native_layer_norm(x: Value, shape: Sequence[Dim], weight: Value | None, bias: Value | None, eps: float) -> tuple[Value, ...]:
    dims = tuple(range(x.type.rank - len(shape), x.type.rank))
    mean, rstd = moments(x, dims, eps)
    _, *types = current().expected
    y = scaled(LayerNorm(len(shape), eps), x, weight, bias)
    return (y, *(cast(value, type.dtype) for value, type in zip((mean, rstd), types, strict=True)))
