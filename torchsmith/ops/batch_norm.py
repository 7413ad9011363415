"""Batch normalisation with running statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, current
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops._moments import moments
from torchsmith.ops.binary import Binary
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class BatchNorm(Op):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel. x: (N, C, ...), the others: (C,). Source: aten.batch_norm."""

    eps: float

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType, mean: TensorType, var: TensorType) -> TensorType:
        if x.rank < 2 or not x.dtype.is_floating_point:
            raise Unsupported(f"batch norm of {x}; it takes (N, C, ...) of a floating dtype")
        for given in (weight, bias, mean, var):
            if given.dtype != x.dtype or given.rank != 1 or not same(given.shape[0], x.shape[1]):
                raise Unsupported(f"batch norm of {x} with {given}; it takes one number of the same dtype per channel")
        return x

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)


@converter(aten.batch_norm.default)
def batch_norm(
    x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Value:  # fmt: skip
    if mean is None or var is None:
        return _with_statistics_of_the_batch(x, weight, bias, eps)
    if training:
        raise Unsupported("batch norm in training mode, which changes its running statistics; call .eval()")
    weight = weight or constant(torch.ones_like(_zeros(mean)), "ones")
    bias = bias or constant(_zeros(mean), "zeros")
    parameters = (weight, bias, mean, var)
    if any(p.type.dtype != x.type.dtype for p in parameters):
        # PyTorch keeps the wider parameters of a reduced input
        wide = [cast(value, torch.float32) for value in (x, *parameters)]
        return cast(BatchNorm(eps)(*wide), x.type.dtype)
    return BatchNorm(eps)(x, *parameters)


def _with_statistics_of_the_batch(x: Value, weight: Value | None, bias: Value | None, eps: float) -> Value:
    """Without running statistics, each channel is normalised by its own, in float32 at least."""
    mean, rstd = moments(x, (0, *range(2, x.type.rank)), eps)
    y = Binary("mul")(Binary("sub")(cast(x, mean.type.dtype), mean), rstd)
    per_channel = (x.type.shape[1], *[1] * (x.type.rank - 2))
    for function, parameter in (("mul", weight), ("add", bias)):
        if parameter is not None:
            y = Binary(function)(y, reshaped(cast(parameter, y.type.dtype), per_channel))
    return cast(y, x.type.dtype)


def _zeros(like: Value) -> Tensor:
    if not like.type.is_static:
        raise Unsupported(f"batch norm with statistics of symbolic shape {like.type}")
    return torch.zeros(like.type.shape, dtype=like.type.dtype)


@converter(aten.native_batch_norm.default)
def native_batch_norm(
    x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Value, ...]:  # fmt: skip
    y = batch_norm(x, weight, bias, mean, var, training, momentum, eps)
    # what is saved for the backward pass has no elements here
    saved = (constant(torch.empty(type.shape, dtype=type.dtype), "saved") for type in current().expected[1:])
    return (y, *saved)


@converter(aten._native_batch_norm_legit_no_training.default, aten._batch_norm_no_update.default)
def native_batch_norm_no_training(
    x: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value, momentum: float, eps: float
) -> tuple[Value, ...]:
    return native_batch_norm(x, weight, bias, mean, var, False, momentum, eps)
