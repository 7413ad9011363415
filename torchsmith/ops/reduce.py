"""Reductions over dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import Shape
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.compare import compare
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten
Dims = int | Sequence[int] | None


def _prod(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    for dim in reversed(dims):
        x = torch.prod(x, dim, keepdim, dtype=x.dtype)
    return x


FUNCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "sum": lambda x, dims, keepdim: torch.sum(x, dims, keepdim, dtype=x.dtype),
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
    "prod": _prod,
    "any": torch.any,
    "all": torch.all,
    "l1": lambda x, dims, keepdim: torch.linalg.vector_norm(x, 1, dims or None, keepdim),
    "l2": lambda x, dims, keepdim: torch.linalg.vector_norm(x, 2, dims or None, keepdim),
}
_FLOATING = ("mean", "l1", "l2")
_BOOL = ("any", "all")


@dataclass(frozen=True)
class Reduce(Op):
    """`function` over `dims` (not negative, in order; at least one, unless x has none); keepdim leaves them with size 1.

    `mean` and the norms `l1` and `l2` take a floating dtype, `any` and `all` take bools.
    Source: aten.sum, mean, amax, amin, prod, any, all, linalg_vector_norm.
    """

    function: str
    dims: tuple[int, ...]
    keepdim: bool

    def infer(self, x: TensorType) -> TensorType:
        if self.function in _FLOATING and not x.dtype.is_floating_point:
            raise Unsupported(f"the {self.function} of {x}; it takes a floating dtype")
        if self.function in _BOOL and x.dtype != torch.bool:
            raise Unsupported(f"{self.function} of {x}; it takes bools")
        if self.function in ("max", "min") and any(x.shape[dim] == 0 for dim in self.dims):
            raise Unsupported(f"the {self.function} of {x} over {self.dims}, which has no elements there")
        assert bool(self.dims) == bool(x.rank), f"{self} of {x}"
        return TensorType(reduced_shape(x, self.dims, self.keepdim), x.dtype)

    def reference(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](x, self.dims, self.keepdim)

    def __str__(self) -> str:
        return f"Reduce[{self.function}](dims={self.dims}, keepdim={self.keepdim})"


def reduced_shape(x: TensorType, dims: Sequence[int], keepdim: bool) -> Shape:
    sizes = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
    return tuple(size for axis, size in enumerate(sizes) if keepdim or axis not in dims)


def all_dims(x: Value, dims: Dims) -> tuple[int, ...]:
    """Dimensions as ATen takes them (none and an empty list: all; negative from the end), not negative and in order."""
    given = [dims] if isinstance(dims, int) else dims
    if not given or not x.type.rank:
        return tuple(range(x.type.rank))
    return tuple(sorted(d % x.type.rank for d in given))


def reduced(function: str, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    """`function` of x over dimensions as ATen takes them."""
    return Reduce(function, all_dims(x, dims), keepdim)(x)


@converter(aten.sum.default)
def sum_all(x: Value, *, dtype: torch.dtype | None = None) -> Value:
    return reduced("sum", cast(x, expected().dtype))


@converter(aten.sum.dim_IntList)
def sum_dims(x: Value, dims: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Value:
    return reduced("sum", cast(x, expected().dtype), dims, keepdim)


@converter(aten.mean.default)
def mean_all(x: Value, *, dtype: torch.dtype | None = None) -> Value:
    return reduced("mean", cast(x, expected().dtype))


@converter(aten.mean.dim)
def mean_dims(x: Value, dims: Dims, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Value:
    return reduced("mean", cast(x, expected().dtype), dims, keepdim)


@converter(aten.prod.default)
def prod_all(x: Value, *, dtype: torch.dtype | None = None) -> Value:
    return reduced("prod", cast(x, expected().dtype))


@converter(aten.prod.dim_int)
def prod_dim(x: Value, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Value:
    return reduced("prod", cast(x, expected().dtype), dim, keepdim)


@converter(aten.amax.default)
def amax(x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    return reduced("max", x, dims, keepdim)


@converter(aten.amin.default)
def amin(x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
    return reduced("min", x, dims, keepdim)


@converter(aten.max.default)
def max_all(x: Value) -> Value:
    return reduced("max", x)


@converter(aten.min.default)
def min_all(x: Value) -> Value:
    return reduced("min", x)


@converter(aten.aminmax.default)
def aminmax(x: Value, *, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    return reduced("min", x, dim, keepdim), reduced("max", x, dim, keepdim)


def _asking(function: str) -> None:
    """any or all; they give bools, and uint8 of uint8."""

    @converter(getattr(aten, function).default, getattr(aten, function).dim, getattr(aten, function).dims)
    def convert(x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
        y = cast(x, torch.bool)
        # here alone an empty list means no dimension at all
        y = y if isinstance(dims, list) and not dims else reduced(function, y, dims, keepdim)
        return cast(y, expected().dtype)


_asking("any")
_asking("all")


@converter(aten.count_nonzero.default, aten.count_nonzero.dim_IntList)
def count_nonzero(x: Value, dims: Dims = None) -> Value:
    return reduced("sum", cast(compare("ne", x, 0), torch.int64), dims)
