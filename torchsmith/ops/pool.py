"""Pooling over windows: the greatest, or the mean, of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops._spatial import Ints, PerDimension, batched, each, windows, windows_ceil
from torchsmith.ops.registry import converter

aten = torch.ops.aten

MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MAX_WITH_INDICES = {1: aten.max_pool1d_with_indices, 2: aten.max_pool2d_with_indices, 3: aten.max_pool3d_with_indices}
MEAN: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class MaxPool(Op):
    """The greatest element of each window. x: (N, C, *spatial), one to three spatial dimensions; padding counts as -inf.

    padding: on each side. ceil_mode: a last window may hang over, if it starts inside. Source: aten.max_pool2d.
    """

    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil_mode: bool

    def infer(self, x: TensorType) -> TensorType:
        return _pooled(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)

    def reference(self, x: Tensor) -> Tensor:
        if x.is_cuda and not x.dtype.is_floating_point:
            return _integer_pool(x, self)[0]
        return MAX[len(self.kernel)](x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)


@dataclass(frozen=True)
class MaxPoolIndices(Op):
    """Where the greatest element of each window stands, counted over x's spatial dimensions, int64; otherwise as MaxPool.

    Source: aten.max_pool2d_with_indices.
    """

    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil_mode: bool

    def infer(self, x: TensorType) -> TensorType:
        return _pooled(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode).with_dtype(torch.int64)

    def reference(self, x: Tensor) -> Tensor:
        if x.is_cuda and not x.dtype.is_floating_point:
            return _integer_pool(x, self)[1]
        pool = MAX_WITH_INDICES[len(self.kernel)]
        found: Tensor = pool(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)[1]
        return found


def _integer_pool(x: Tensor, op: MaxPool | MaxPoolIndices) -> tuple[Tensor, Tensor]:
    """Values and places in float64, as PyTorch has no such kernel of integers on GPUs; the values are exact by their places."""
    pool = MAX_WITH_INDICES[len(op.kernel)]
    _, places = pool(x.double(), op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
    values = x.flatten(2).gather(2, places.flatten(2)).reshape(places.shape)
    return values, places


@dataclass(frozen=True)
class AvgPool(Op):
    """The mean of each window. x: (N, C, *spatial), one to three spatial dimensions, floating; padding is of zeros.

    count_include_pad: the mean counts the padding. divisor: what to divide by instead, 0 for the count.
    Source: aten.avg_pool2d.
    """

    kernel: Ints
    stride: Ints
    padding: Ints
    ceil_mode: bool
    count_include_pad: bool
    divisor: int

    def infer(self, x: TensorType) -> TensorType:
        if not x.dtype.is_floating_point:
            raise Unsupported(f"average pooling of {x}; it takes a floating dtype")
        return _pooled(x, self.kernel, self.stride, self.padding, (1,) * len(self.kernel), self.ceil_mode)

    def reference(self, x: Tensor) -> Tensor:
        rank = len(self.kernel)
        if rank == 3 and x.dtype in (torch.float16, torch.bfloat16):
            return self.reference(x.float()).to(x.dtype)  # PyTorch has no such kernel on CPUs
        divisor = () if rank == 1 else (self.divisor or None,)
        return MEAN[rank](x, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, *divisor)


def _pooled(x: TensorType, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> TensorType:
    if x.rank != len(kernel) + 2 or not 1 <= len(kernel) <= 3 or x.dtype == torch.bool:
        raise Unsupported(
            f"pooling of {x} over windows {kernel}; it takes (N, C, *spatial), and a window of one to three dimensions"
        )
    spatial = tuple(
        windows_ceil(size, k, s, p, d) if ceil_mode else windows(size, k, s, 2 * p, d)
        for size, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    return x.with_shape(*x.shape[:2], *spatial)


def _max_pool_op(kind: type[MaxPool] | type[MaxPoolIndices], rank: int, *attributes: PerDimension, ceil_mode: bool) -> Op:
    kernel, stride, padding, dilation = attributes
    size = each(kernel, rank)
    # an empty list of strides means windows side by side
    return kind(size, each(stride, rank) if stride else size, each(padding, rank), each(dilation, rank), ceil_mode)


def _register_max(rank: int) -> None:
    plain = getattr(aten, f"max_pool{rank}d").default
    with_indices = MAX_WITH_INDICES[rank].default

    @converter(plain)
    def max_pool(
        x: Value,
        kernel: PerDimension,
        stride: Sequence[int] = (),
        padding: PerDimension = 0,
        dilation: PerDimension = 1,
        ceil_mode: bool = False,
    ) -> Value:
        return batched(x, rank, _max_pool_op(MaxPool, rank, kernel, stride, padding, dilation, ceil_mode=ceil_mode))

    @converter(with_indices)
    def max_pool_with_indices(
        x: Value,
        kernel: PerDimension,
        stride: Sequence[int] = (),
        padding: PerDimension = 0,
        dilation: PerDimension = 1,
        ceil_mode: bool = False,
    ) -> tuple[Value, Value]:
        values = max_pool(x, kernel, stride, padding, dilation, ceil_mode)
        return values, batched(x, rank, _max_pool_op(MaxPoolIndices, rank, kernel, stride, padding, dilation, ceil_mode=ceil_mode))

    @converter(getattr(aten, f"avg_pool{rank}d").default)
    def avg_pool(
        x: Value, kernel: PerDimension, stride: Sequence[int] = (), padding: PerDimension = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Value:  # fmt: skip
        size = each(kernel, rank)
        op = AvgPool(
            size, each(stride, rank) if stride else size, each(padding, rank), ceil_mode, count_include_pad, divisor_override or 0
        )
        return batched(x, rank, op)


for _rank in (1, 2, 3):
    _register_max(_rank)
