"""Convolution in one to three dimensions, grouped and transposed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same, simplify
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops._spatial import Ints, PerDimension, batched, each, windows
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class Convolution(Op):
    """Cross-correlation of x: (N, C, *spatial) with weight: (K, C / groups, *kernel), plus bias: (K,) where given.

    One to three spatial dimensions, floating. padding: per dimension, before and after. Source: aten.convolution.
    """

    stride: Ints
    padding: tuple[tuple[int, int], ...]
    dilation: Ints
    groups: int

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
        _check(x, weight, bias)
        if not same(x.shape[1], weight.shape[1] * self.groups):
            raise Unsupported(f"a convolution of {x.shape[1]} channels with weights {weight} in {self.groups} groups")
        spatial = tuple(
            windows(size, kernel, stride, before + after, dilation)
            for size, kernel, stride, (before, after), dilation in zip(
                x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, strict=True
            )
        )
        return TensorType((x.shape[0], weight.shape[0], *spatial), x.dtype)

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if any(before != after for before, after in self.padding):
            x = torch.nn.functional.pad(x, [p for pair in reversed(self.padding) for p in pair])
            padding = [0] * len(self.stride)
        else:
            padding = [before for before, _ in self.padding]
        return torch.convolution(x, weight, bias, self.stride, padding, self.dilation, False, [0] * len(self.stride), self.groups)


@dataclass(frozen=True)
class ConvolutionTransposed(Op):
    """The adjoint of convolution. x: (N, C, *spatial), weight: (C, K / groups, *kernel), bias: (K,). Source: aten.convolution."""

    stride: Ints
    padding: Ints
    dilation: Ints
    output_padding: Ints
    groups: int

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
        _check(x, weight, bias)
        if not same(x.shape[1], weight.shape[0]):
            raise Unsupported(f"a transposed convolution of {x.shape[1]} channels with weights {weight}")
        spatial = tuple(
            simplify((size - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1)
            for size, kernel, stride, padding, dilation, extra in zip(
                x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation, self.output_padding, strict=True
            )
        )
        return TensorType((x.shape[0], weight.shape[1] * self.groups, *spatial), x.dtype)

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, True, self.output_padding, self.groups)


def _check(x: TensorType, weight: TensorType, bias: TensorType | None) -> None:
    if x.rank != weight.rank or not 3 <= x.rank <= 5:
        raise Unsupported(
            f"a convolution of {x} with weights {weight}; it takes (N, C, *spatial) with one to three spatial dimensions"
        )
    types = [t.dtype for t in (x, weight, bias) if t is not None]
    if len(set(types)) > 1 or not x.dtype.is_floating_point:
        raise Unsupported(f"a convolution of dtypes {types}; it takes one floating dtype")
    if not weight.is_static:
        raise Unsupported(f"a convolution with weights of symbolic shape {weight}")


def _apply(op: Op, x: Value, weight: Value, bias: Value | None) -> Value:
    return batched(x, weight.type.rank - 2, lambda x: op(x, weight) if bias is None else op(x, weight, bias))


@converter(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def conv(
    x: Value, weight: Value, bias: Value | None = None,
    stride: PerDimension = 1, padding: PerDimension = 0, dilation: PerDimension = 1, groups: int = 1,
) -> Value:  # fmt: skip
    rank = weight.type.rank - 2
    pairs = tuple((p, p) for p in each(padding, rank))
    return _apply(Convolution(each(stride, rank), pairs, each(dilation, rank), groups), x, weight, bias)


@converter(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def conv_padding(
    x: Value, weight: Value, bias: Value | None = None,
    stride: PerDimension = 1, padding: str = "valid", dilation: PerDimension = 1, groups: int = 1,
) -> Value:  # fmt: skip
    if padding == "valid":
        return conv(x, weight, bias, stride, 0, dilation, groups)
    rank = weight.type.rank - 2
    if not weight.type.is_static:
        raise Unsupported(f"a convolution with weights of symbolic shape {weight.type}")
    extra = [d * (int(k) - 1) for d, k in zip(each(dilation, rank), weight.type.shape[2:], strict=True)]
    # where the sum is odd, PyTorch pads one more after than before
    pairs = tuple((e // 2, e - e // 2) for e in extra)
    return _apply(Convolution(each(stride, rank), pairs, each(dilation, rank), groups), x, weight, bias)


@converter(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transposed(
    x: Value, weight: Value, bias: Value | None = None, stride: PerDimension = 1, padding: PerDimension = 0,
    output_padding: PerDimension = 0, groups: int = 1, dilation: PerDimension = 1,
) -> Value:  # fmt: skip
    rank = weight.type.rank - 2
    op = ConvolutionTransposed(each(stride, rank), each(padding, rank), each(dilation, rank), each(output_padding, rank), groups)
    return _apply(op, x, weight, bias)


@converter(aten.convolution.default, aten._convolution.default)
def convolution(
    x: Value, weight: Value, bias: Value | None, stride: PerDimension, padding: PerDimension, dilation: PerDimension,
    transposed: bool, output_padding: PerDimension, groups: int, *_: bool,
) -> Value:  # fmt: skip
    if transposed:
        return conv_transposed(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(x, weight, bias, stride, padding, dilation, groups)
