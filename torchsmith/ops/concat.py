"""Tensors joined along a dimension."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce as fold

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import same, total
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.permute import permuted
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.slice import sliced

aten = torch.ops.aten


@dataclass(frozen=True)
class Concat(Op):
    """The inputs one after another along `dim` (not negative); the other sizes and the dtype are the same. Source: aten.cat."""

    moves_data = True
    dim: int

    def infer(self, *xs: TensorType) -> TensorType:
        first = xs[0]
        for x in xs:
            others = [(a, b) for axis, (a, b) in enumerate(zip(x.shape, first.shape)) if axis != self.dim]
            if x.rank != first.rank or x.dtype != first.dtype or not all(same(a, b) for a, b in others):
                raise Unsupported(f"{x} cannot follow {first} along dimension {self.dim}")
        return first.with_shape(*first.shape[: self.dim], total([x.shape[self.dim] for x in xs]), *first.shape[self.dim + 1 :])

    def reference(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.dim)


def concatenated(xs: list[Value], dim: int) -> Value:
    """The values one after another; the value itself where there is one."""
    return xs[0] if len(xs) == 1 else Concat(dim % xs[0].type.rank)(*xs)


@converter(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(tensors: list[Value], dim: int = 0) -> Value:
    wanted = expected()
    # PyTorch passes over empty one-dimensional tensors, whatever the others' rank
    kept = [t for t in tensors if not (t.type.rank == 1 and t.type.shape == (0,) and wanted.rank != 1)]
    return concatenated([cast(t, wanted.dtype) for t in kept], dim)


@converter(aten.stack.default)
def stack(tensors: list[Value], dim: int = 0) -> Value:
    wanted = expected()
    dim %= wanted.rank
    shape = (*wanted.shape[:dim], 1, *wanted.shape[dim + 1 :])
    return concatenated([reshaped(cast(t, wanted.dtype), shape) for t in tensors], dim)


@converter(aten.roll.default)
def roll(x: Value, shifts: list[int], dims: list[int] = []) -> Value:  # noqa: B006 - the schema's default
    if not dims:
        flat = reshaped(x, (x.type.numel,))
        return reshaped(_rolled(flat, shifts[0], 0), x.type.shape)
    return fold(lambda y, step: _rolled(y, *step), zip(shifts, dims), x)


def _rolled(x: Value, shift: int, dim: int) -> Value:
    size = x.type.shape[dim]
    if not isinstance(size, int) or not isinstance(shift, int):
        raise Unsupported(f"a roll by {shift} along a dimension of size {size}; both must be known")
    cut = (-shift) % size if size else 0
    return x if cut == 0 else concatenated([sliced(x, dim, cut, size), sliced(x, dim, 0, cut)], dim)


@converter(aten.pixel_shuffle.default)
def pixel_shuffle(x: Value, factor: int) -> Value:
    *batch, channels, height, width = x.type.shape
    k = len(batch)
    split = reshaped(x, (*batch, channels // factor**2, factor, factor, height, width))
    order = [*range(k), k, k + 3, k + 1, k + 4, k + 2]
    return reshaped(permuted(split, order), expected().shape)


@converter(aten.pixel_unshuffle.default)
def pixel_unshuffle(x: Value, factor: int) -> Value:
    *batch, channels, height, width = x.type.shape
    k = len(batch)
    split = reshaped(x, (*batch, channels, height // factor, factor, width // factor, factor))
    order = [*range(k), k, k + 2, k + 4, k + 1, k + 3]
    return reshaped(permuted(split, order), expected().shape)


@converter(aten.channel_shuffle.default)
def channel_shuffle(x: Value, groups: int) -> Value:
    batch, channels, *rest = x.type.shape
    split = reshaped(x, (batch, groups, channels // groups, *rest))
    return reshaped(permuted(split, [0, 2, 1, *range(3, 3 + len(rest))]), x.type.shape)
