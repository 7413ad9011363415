"""The greatest or smallest elements along a dimension, in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class TopK(Op):
    """The k greatest (or smallest) elements along `dim` (not negative), sorted, and their indices (int64).

    stable: equal elements keep their order; otherwise it is left open. NaN counts as the greatest.
    Source: aten.topk, sort.
    """

    k: Dim
    dim: int
    largest: bool
    stable: bool

    def infer(self, x: TensorType) -> tuple[TensorType, TensorType]:
        if not 0 <= self.dim < x.rank:
            raise Unsupported(f"the order of {x}, which has no dimension to sort along")
        values = x.with_shape(*x.shape[: self.dim], self.k, *x.shape[self.dim + 1 :])
        return values, values.with_dtype(torch.int64)

    def reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = torch.sort(x, dim=self.dim, descending=self.largest, stable=self.stable)
        return values.narrow(self.dim, 0, int(self.k)), indices.narrow(self.dim, 0, int(self.k))


@converter(aten.topk.default)
def topk(x: Value, k: Dim, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, Value]:
    values, indices = TopK(k, dim % max(x.type.rank, 1), largest, False)(x)
    return values, indices


@converter(aten.sort.default)
def sort(x: Value, dim: int = -1, descending: bool = False, stable: bool | None = False) -> tuple[Value, Value]:
    dim %= max(x.type.rank, 1)
    size = x.type.shape[dim] if x.type.rank else 1
    values, indices = TopK(size, dim, descending, bool(stable))(x)
    return values, indices


@converter(aten.sort.stable)
def sort_stable(x: Value, *, stable: bool | None, dim: int = -1, descending: bool = False) -> tuple[Value, Value]:
    return sort(x, dim, descending, stable)


@converter(aten.argsort.default)
def argsort(x: Value, dim: int = -1, descending: bool = False) -> Value:
    return sort(x, dim, descending)[1]


@converter(aten.argsort.stable)
def argsort_stable(x: Value, *, stable: bool, dim: int = -1, descending: bool = False) -> Value:
    return sort(x, dim, descending, stable)[1]


@converter(aten.msort.default)
def msort(x: Value) -> Value:
    return sort(x, 0)[0]
