"""Dimensions in another order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class Permute(Op):
    """Output dimension i is x's dimension dims[i]. Source: aten.permute."""

    moves_data = True
    dims: tuple[int, ...]

    def infer(self, x: TensorType) -> TensorType:
        assert sorted(self.dims) == list(range(x.rank)), f"{self} of {x}"
        return x.with_shape(*(x.shape[d] for d in self.dims))

    def reference(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


def permuted(x: Value, dims: list[int]) -> Value:
    """x with its dimensions in another order; x itself where the order is the same."""
    wanted = tuple(d % x.type.rank for d in dims)
    return x if wanted == tuple(range(x.type.rank)) else Permute(wanted)(x)


@converter(aten.permute.default)
def permute(x: Value, dims: list[int]) -> Value:
    return permuted(x, dims)


@converter(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(x: Value, dim0: int, dim1: int) -> Value:
    dims = list(range(x.type.rank))
    if dims:
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return permuted(x, dims)


@converter(aten.t.default, aten.numpy_T.default, aten.mT.default, aten.matrix_H.default)
def t(x: Value) -> Value:
    return transpose(x, -1, -2) if x.type.rank > 1 else x


@converter(aten.movedim.intlist)
def movedim(x: Value, source: list[int], destination: list[int]) -> Value:
    rank = x.type.rank
    taken = {d % rank: s % rank for s, d in zip(source, destination)}
    rest = iter(sorted(set(range(rank)) - set(taken.values())))
    return permuted(x, [taken[d] if d in taken else next(rest) for d in range(rank)])


@converter(aten.movedim.int)
def movedim_one(x: Value, source: int, destination: int) -> Value:
    return movedim(x, [source], [destination])


@converter(aten.adjoint.default)
def adjoint(x: Value) -> Value:
    return transpose(x, -1, -2)
