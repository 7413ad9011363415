"""Group normalisation, and instance normalisation, which is a group per channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import current
from torchsmith.ir.dim import Dim, floordiv, product
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops._moments import moments
from torchsmith.ops.batch_norm import batch_norm
from torchsmith.ops.layer_norm import check_parameter, scaled
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class GroupNorm(Op):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with the statistics of each of `groups` runs of channels.

    x: (N, C, ...); weight, and bias after it: (C,), and may be missing; the statistics are float32 at least.
    Source: aten.group_norm.
    """

    groups: int
    eps: float

    def infer(self, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None) -> TensorType:
        channels = x.shape[1] if x.rank >= 2 else 0
        if not isinstance(channels, int) or channels % self.groups or not x.dtype.is_floating_point:
            raise Unsupported(f"group norm of {x} in {self.groups} groups; it takes (N, C, ...) of a floating dtype, and a known C")
        for given in (weight, bias):
            check_parameter(given, x, (channels,))
        return x

    def reference(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        # the native op: torch.group_norm refuses groups of one element
        n, channels, *spatial = x.shape
        return torch.native_group_norm(x.contiguous(), weight, bias, n, channels, _count(spatial), self.groups, self.eps)[0]


def _count(sizes: list[int]) -> int:
    total = product(sizes)
    assert isinstance(total, int)
    return total


@converter(aten.group_norm.default)
def group_norm(
    x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Value:
    return scaled(GroupNorm(groups, eps), x, weight, bias)


@converter(aten.native_group_norm.default)
def native_group_norm(
    x: Value, weight: Value | None, bias: Value | None, n: Dim, channels: Dim, count: Dim, groups: int, eps: float
) -> tuple[Value, ...]:
    y = group_norm(x, groups, weight, bias, eps)
    _, *types = current().expected
    members = floordiv(product(x.type.shape[1:]), groups)
    values = moments(reshaped(x, (x.type.shape[0], groups, members)), (2,), eps)
    return (y, *(cast(reshaped(value, type.shape), type.dtype) for value, type in zip(values, types, strict=True)))


@converter(aten.instance_norm.default)
def instance_norm(
    x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Value:  # fmt: skip
    if not use_input_stats:
        return batch_norm(x, weight, bias, mean, var, False, momentum, eps)
    channels = x.type.shape[1]
    if not isinstance(channels, int):
        raise Unsupported(f"instance norm of {x.type}; it takes a known number of channels")
    return group_norm(x, channels, weight, bias, eps)
