"""Elements put, or added, by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant
from torchsmith.ir.dim import Dim, broadcast, product, same, simplify
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.concat import concatenated
from torchsmith.ops.expand import expanded
from torchsmith.ops.gather import check_index, row_number, wrapped
from torchsmith.ops.permute import permuted
from torchsmith.ops.promote import as_value, cast, scalar
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.slice import _position, sliced
from torchsmith.ops.where import Where

aten = torch.ops.aten

REDUCTIONS = ("none", "sum", "prod", "amax", "amin")


@dataclass(frozen=True)
class ScatterElements(Op):
    """x with values[i][j] put at [index[i][j]][j] for dim 0, and so on; with a reduction, combined with what is there.

    index: int32 or int64, x's rank, within range; values: index's shape. Where an index repeats without a reduction, which
    value wins is not said. Source: aten.scatter, aten.scatter_add, aten.scatter_reduce.
    """

    dim: int
    reduction: str = "none"

    def infer(self, x: TensorType, index: TensorType, values: TensorType) -> TensorType:
        check_index(index)
        if x.dtype != values.dtype or index.rank != x.rank or not all(map(same, index.shape, values.shape)):
            raise Unsupported(f"a scatter of {values} into {x} by {index}")
        return x

    def reference(self, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
        index = index.long()
        if self.reduction == "none":
            return x.scatter(self.dim, index, values)
        return x.scatter_reduce(self.dim, index, values, self.reduction, include_self=True)


@dataclass(frozen=True)
class ScatterRows(Op):
    """x with the slices values[i] put, or added, at x[index[i]]. index: (n,), integers within range; values: (n, *x.shape[1:]).

    Source: aten.index_put, aten.index_copy, aten.index_add along dimension 0.
    """

    accumulate: bool

    def infer(self, x: TensorType, index: TensorType, values: TensorType) -> TensorType:
        check_index(index)
        wanted = (*index.shape, *x.shape[1:])
        if x.dtype != values.dtype or index.rank != 1 or values.rank != x.rank or not all(map(same, values.shape, wanted)):
            raise Unsupported(f"rows {values} put into {x} by {index}")
        return x

    def reference(self, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return x.index_put((index.long(),), values, self.accumulate)


def _scatter(x: Value, dim: int, index: Value, values: Value, reduction: str) -> Value:
    if x.type.rank == 0:
        raise Unsupported("a scatter into a tensor of no dimensions")
    dim %= x.type.rank
    for axis, (have, want) in enumerate(zip(values.type.shape, index.type.shape)):
        if not same(have, want):  # PyTorch reads only as much of the values as the index is long
            values = sliced(values, axis, 0, want)
    return ScatterElements(dim, reduction)(x, index, cast(values, x.type.dtype))


@converter(aten.scatter.src)
def scatter(x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(x, dim, index, src, "none")


@converter(aten.scatter.value)
def scatter_value(x: Value, dim: int, index: Value, value: float) -> Value:
    return _scatter(x, dim, index, expanded(scalar(value, x.type.dtype), index.type.shape), "none")


@converter(aten.scatter_add.default)
def scatter_add(x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scatter(x, dim, index, src, "sum")


@converter(aten.scatter_reduce.two)
def scatter_reduce(x: Value, dim: int, index: Value, src: Value, reduce: str, include_self: bool = True) -> Value:
    if reduce == "mean" or not include_self:
        raise Unsupported(
            f"scatter_reduce(reduce={reduce!r}, include_self={include_self}); it takes sums, products and extremes with self"
        )
    return _scatter(x, dim, index, src, reduce)


@converter(aten.index_put.default)
def index_put(x: Value, indices: list[Value | None], values: Value, accumulate: bool = False) -> Value:
    given = [i for i in indices if i is not None]
    if len(given) == 1 and indices[0] is not None and given[0].type.dtype == torch.bool:
        if values.type.numel != 1 or accumulate:
            raise Unsupported("values put by a mask, one for each of its true places; it takes a single value")
        mask = reshaped(given[0], (*given[0].type.shape, *[1] * (x.type.rank - given[0].type.rank)))
        return Where()(mask, reshaped(cast(values, x.type.dtype), ()), x)
    if any(i.type.dtype in (torch.bool, torch.uint8) for i in given):
        raise Unsupported("an assignment by several masks")
    dims = [d for d, i in enumerate(indices) if i is not None]
    rest = [d for d in range(x.type.rank) if d not in dims]
    if dims != list(range(dims[0], dims[-1] + 1)) and values.type.rank > 1:
        raise Unsupported("an assignment by indices that do not stand together")
    shape, sizes = broadcast(*(i.type.shape for i in given)), [x.type.shape[d] for d in dims]
    row = row_number(given, sizes, shape)
    others = tuple(x.type.shape[d] for d in rest)
    flat = reshaped(permuted(x, dims + rest), (product(sizes), *others))
    n, front = len(shape), dims[0]
    # values are shaped as x[indices]: the dimensions before the indexed ones come first there
    seen = expanded(cast(values, x.type.dtype), (*others[:front], *shape, *others[front:]))
    seen = (
        permuted(seen, [*range(front, front + n), *range(front), *range(front + n, front + n + len(others) - front)])
        if seen.type.rank
        else seen
    )
    put = ScatterRows(accumulate)(flat, reshaped(row, (product(shape),)), reshaped(seen, (product(shape), *others)))
    order = dims + rest
    back = [order.index(d) for d in range(x.type.rank)]
    return permuted(reshaped(put, (*sizes, *others)), back)


@converter(aten.index_copy.default)
def index_copy(x: Value, dim: int, index: Value, source: Value) -> Value:
    return _along(x, dim, index, source, False)


@converter(aten.index_add.default)
def index_add(x: Value, dim: int, index: Value, source: Value, alpha: float = 1) -> Value:
    if alpha != 1:
        source = Binary("mul")(source, scalar(alpha, source.type.dtype))
    return _along(x, dim, index, source, True)


@converter(aten.index_fill.int_Scalar)
def index_fill(x: Value, dim: int, index: Value, value: float) -> Value:
    dim %= max(x.type.rank, 1)
    shape = (*x.type.shape[:dim], index.type.numel, *x.type.shape[dim + 1 :])
    return _along(x, dim, index, expanded(scalar(value, x.type.dtype), shape), False)


def _along(x: Value, dim: int, index: Value, source: Value, accumulate: bool) -> Value:
    if x.type.rank == 0:
        raise Unsupported("an indexed assignment to a tensor of no dimensions")
    dim %= x.type.rank
    order = [dim, *(d for d in range(x.type.rank) if d != dim)]
    back = [order.index(d) for d in range(x.type.rank)]
    rows = reshaped(wrapped(index, x.type.shape[dim]), (index.type.numel,))
    return permuted(ScatterRows(accumulate)(permuted(x, order), rows, permuted(cast(source, x.type.dtype), order)), back)


@converter(aten.slice_scatter.default)
def slice_scatter(x: Value, src: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1) -> Value:
    dim %= x.type.rank
    size = x.type.shape[dim]
    low, high = _position(start, 0, size), _position(end, size, size)
    if step == 1:
        high = simplify(low + src.type.shape[dim])
        parts = [sliced(x, dim, 0, low), cast(src, x.type.dtype), sliced(x, dim, high, size)]
        return concatenated([p for p in parts if not same(p.type.shape[dim], 0)] or parts[:1], dim)
    if not (isinstance(low, int) and isinstance(high, int)):
        raise Unsupported(f"an assignment to every {step}th element of a symbolic range")
    return _along(x, dim, constant(torch.arange(low, high, step), "rows"), src, False)


@converter(aten.select_scatter.default)
def select_scatter(x: Value, src: Value, dim: int, index: Dim) -> Value:
    dim %= x.type.rank
    first = _position(index, 0, x.type.shape[dim])
    piece = reshaped(src, (*x.type.shape[:dim], 1, *x.type.shape[dim + 1 :]))
    return slice_scatter(x, piece, dim, first, simplify(first + 1))


@converter(aten.masked_scatter.default, aten.masked_select.default)
def masked_scatter(*_: Any) -> Value:
    raise Unsupported("where its values go depends on the data")


@converter(aten.copy.default)
def copy(x: Value, src: Value, non_blocking: bool = False) -> Value:
    return expanded(as_value(src, x.type.dtype), x.type.shape)
