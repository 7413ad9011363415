"""Batch normalisation with running statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class BatchNorm(Op):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel. x: (N, C, ...), the others: (C,). Source: aten.batch_norm."""

    eps: float

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType, mean: TensorType, var: TensorType) -> TensorType:
        if x.rank < 2 or not x.dtype.is_floating_point:
            raise Unsupported(f"batch norm of {x}; it takes (N, C, ...) of a floating dtype")
        return x

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)


@converter(aten.batch_norm.default)
def batch_norm(
    x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
    training: bool, momentum: float, eps: float, cudnn_enabled: bool,
) -> Value:  # fmt: skip
    if training or mean is None or var is None:
        raise Unsupported("batch norm that takes its statistics from the batch; call .eval(), and keep track_running_stats")
    ones, zeros = torch.ones(mean.type.shape, dtype=mean.type.dtype), torch.zeros(mean.type.shape, dtype=mean.type.dtype)
    return BatchNorm(eps)(x, weight or constant(ones), bias or constant(zeros), mean, var)
