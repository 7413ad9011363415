"""Pooling to a given output size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops._spatial import Ints, batched
from torchsmith.ops.pool import AvgPool, MaxPool
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.registry import converter

aten = torch.ops.aten

MEAN: dict[int, Callable[..., Tensor]] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MAX = {1: aten.adaptive_max_pool1d, 2: aten.adaptive_max_pool2d, 3: aten.adaptive_max_pool3d}


@dataclass(frozen=True)
class AdaptiveAvgPool(Op):
    """The means of windows i * size // output to ceil((i + 1) * size / output). x: (N, C, *spatial), floating.

    Source: aten.adaptive_avg_pool2d.
    """

    output: tuple[Dim, ...]

    def infer(self, x: TensorType) -> TensorType:
        return _pooled(x, self.output)

    def reference(self, x: Tensor) -> Tensor:
        return MEAN[len(self.output)](x, self.output)


@dataclass(frozen=True)
class AdaptiveMaxPool(Op):
    """The greatest elements of the same windows, and where they stand, counted over the spatial dimensions, int64.

    Source: aten.adaptive_max_pool2d.
    """

    output: tuple[Dim, ...]

    def infer(self, x: TensorType) -> tuple[TensorType, TensorType]:
        values = _pooled(x, self.output)
        return values, values.with_dtype(torch.int64)

    def reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = MAX[len(self.output)](x, self.output)
        return values, indices


def _pooled(x: TensorType, output: Sequence[Dim]) -> TensorType:
    if x.rank != len(output) + 2 or not 1 <= len(output) <= 3 or not x.dtype.is_floating_point:
        raise Unsupported(f"adaptive pooling of {x} to {tuple(output)}; it takes (N, C, *spatial) of a floating dtype")
    return x.with_shape(*x.shape[:2], *output)


def _even_windows(x: Value, output: Sequence[Dim]) -> Ints | None:
    """The window that steps by itself and gives `output`, or None where windows differ in size."""
    found = []
    for size, wanted in zip(x.type.shape[2:], output, strict=True):
        if same(size, wanted):
            found.append(1)
        elif isinstance(size, int) and isinstance(wanted, int) and wanted and size % wanted == 0:
            found.append(size // wanted)
        else:
            return None
    return tuple(found)


def _mean(x: Value, output: Sequence[Dim]) -> Value:
    if all(same(size, 1) for size in output):
        return Reduce("mean", tuple(range(2, x.type.rank)), True)(x)
    if window := _even_windows(x, output):
        return AvgPool(window, window, (0,) * len(window), False, True, 0)(x)
    return AdaptiveAvgPool(tuple(output))(x)


def _greatest(x: Value, output: Sequence[Dim]) -> Value:
    if all(same(size, 1) for size in output):
        return Reduce("max", tuple(range(2, x.type.rank)), True)(x)
    if window := _even_windows(x, output):
        return MaxPool(window, window, (0,) * len(window), (1,) * len(window), False)(x)
    return AdaptiveMaxPool(tuple(output))(x)[0]


@converter(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    aten._adaptive_avg_pool3d.default,
)
def adaptive_avg_pool(x: Value, output: Sequence[Dim]) -> Value:
    return batched(x, len(output), lambda x: _mean(x, output))


@converter(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def adaptive_max_pool(x: Value, output: Sequence[int]) -> tuple[Value, Value]:
    indices = batched(x, len(output), lambda x: AdaptiveMaxPool(tuple(output))(x)[1])
    return batched(x, len(output), lambda x: _greatest(x, output)), indices
