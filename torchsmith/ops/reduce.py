"""Reductions over dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten

FUNCTIONS = {
    "sum": lambda x, dims, keep: torch.sum(x, dims, keep, dtype=x.dtype),
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
}


@dataclass(frozen=True)
class Reduce(Op):
    """`function` over `dims` (not negative, in order); keepdim leaves them with size 1. Source: aten.sum, mean, amax, amin, …"""

    function: str
    dims: tuple[int, ...]
    keepdim: bool

    def infer(self, x: TensorType) -> TensorType:
        if self.function == "mean" and not x.dtype.is_floating_point:
            raise Unsupported(f"a mean of {x}; it takes a floating dtype")
        return TensorType(reduced_shape(x, self.dims, self.keepdim), x.dtype)

    def reference(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](x, self.dims, self.keepdim)

    def __str__(self) -> str:
        return f"Reduce[{self.function}](dims={self.dims}, keepdim={self.keepdim})"


def reduced_shape(x: TensorType, dims: tuple[int, ...], keepdim: bool):  # type: ignore[no-untyped-def]
    sizes = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
    return tuple(size for axis, size in enumerate(sizes) if keepdim or axis not in dims)


def all_dims(x: Value, dims: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """Dimensions as ATen takes them (none and an empty list: all; negative from the end), not negative and in order."""
    given = [dims] if isinstance(dims, int) else dims
    return tuple(sorted(d % max(x.type.rank, 1) for d in given)) if given else tuple(range(x.type.rank))


@converter(aten.mean.dim)
def mean(x: Value, dims: list[int] | None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Value:
    return Reduce("mean", all_dims(x, dims), keepdim)(cast(x, dtype or x.type.dtype))


@converter(aten.adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(x: Value, output_size: list[int]) -> Value:
    if list(output_size) != [1, 1]:
        raise Unsupported(f"adaptive average pooling to {output_size}")
    return Reduce("mean", (x.type.rank - 2, x.type.rank - 1), True)(x)
