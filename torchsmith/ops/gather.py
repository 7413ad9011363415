"""Elements picked by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, expected
from torchsmith.ir.dim import Dim, Shape, broadcast, floordiv, product, same, simplify
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.compare import Compare
from torchsmith.ops.expand import expanded
from torchsmith.ops.permute import permuted
from torchsmith.ops.promote import cast, scalar
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.where import Where

aten = torch.ops.aten


@dataclass(frozen=True)
class Gather(Op):
    """Slices of x along `dim` at `index` (integers, any shape, within 0 … size-1). Source: aten.embedding, aten.index_select.

    The result has index's dimensions in place of dim.
    """

    moves_data = True
    dim: int

    def infer(self, x: TensorType, index: TensorType) -> TensorType:
        check_index(index)
        return x.with_shape(*x.shape[: self.dim], *index.shape, *x.shape[self.dim + 1 :])

    def reference(self, x: Tensor, index: Tensor) -> Tensor:
        flat = x.index_select(self.dim, index.reshape(-1))
        return flat.reshape(*x.shape[: self.dim], *index.shape, *x.shape[self.dim + 1 :])


@dataclass(frozen=True)
class GatherElements(Op):
    """out[i][j][k] = x[index[i][j][k]][j][k] for dim 0, and so on; index: integers, x's rank, within range. Source: aten.gather."""

    moves_data = True
    dim: int

    def infer(self, x: TensorType, index: TensorType) -> TensorType:
        check_index(index)
        if x.rank != index.rank or not all(same(a, b) for axis, (a, b) in enumerate(zip(x.shape, index.shape)) if axis != self.dim):
            raise Unsupported(f"a gather from {x} by {index}; but for dimension {self.dim} both must have the same sizes")
        return x.with_shape(*index.shape)

    def reference(self, x: Tensor, index: Tensor) -> Tensor:
        return torch.gather(x, self.dim, index.long())


def check_index(index: TensorType) -> None:
    if index.dtype not in (torch.int64, torch.int32):
        raise Unsupported(f"an index of {index}; it takes int32 or int64")


def wrapped(index: Value, size: Any) -> Value:
    """Negative indices counted from the end."""
    zero = scalar(0, index.type.dtype)
    from_end = Binary("add")(index, scalar(size, index.type.dtype))
    return Where()(Compare("lt")(index, zero), from_end, index)


def row_number(indices: list[Value], sizes: list[Dim], shape: Shape) -> Value:
    """One index into dimensions of `sizes` flattened to one, from an index into each; of `shape`, to which they broadcast."""
    if any(same(size, 0) for size in sizes):
        raise Unsupported(f"an index into dimensions of sizes {tuple(sizes)}, where there is nothing")
    row: Value | None = None
    remaining = product(sizes)
    for index, size in zip(indices, sizes):
        remaining = floordiv(remaining, size)
        part = wrapped(cast(index, torch.int64), size)
        part = part if same(remaining, 1) else Binary("mul")(part, scalar(remaining, torch.int64))
        row = part if row is None else Binary("add")(row, part)
    assert row is not None
    return expanded(row, shape)


@converter(aten.embedding.default)
def embedding(
    weight: Value, indices: Value, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Value:
    return Gather(0)(weight, indices)


@converter(aten.index_select.default)
def index_select(x: Value, dim: int, index: Value) -> Value:
    if x.type.rank == 0:
        raise Unsupported("an index_select from a tensor of no dimensions")
    return reshaped(Gather(dim % x.type.rank)(x, index), expected().shape)


@converter(aten.gather.default)
def gather(x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    if x.type.rank == 0:
        raise Unsupported("a gather from a tensor of no dimensions")
    dim %= x.type.rank
    for axis, (have, want) in enumerate(zip(x.type.shape, index.type.shape)):
        if axis != dim and not same(have, want):  # PyTorch looks only at as much as the index is long
            if not isinstance(want, int):
                raise Unsupported(f"a gather from {x.type} by {index.type}, which is shorter along the dynamic dimension {axis}")
            # not by a Slice: OpenVINO 2026.4 drops one in front of its GatherElements, and then refuses the shapes
            x = Gather(axis)(x, constant(torch.arange(want), "leading"))
    return GatherElements(dim)(x, index)


@converter(aten.take_along_dim.default)
def take_along_dim(x: Value, index: Value, dim: int | None = None) -> Value:
    if dim is None:
        return GatherElements(0)(reshaped(x, (x.type.numel,)), reshaped(index, (index.type.numel,)))
    dim %= x.type.rank
    rest = broadcast(*(tuple(1 if a == dim else s for a, s in enumerate(v.type.shape)) for v in (x, index)))
    x, index = (expanded(v, (*rest[:dim], v.type.shape[dim], *rest[dim + 1 :])) for v in (x, index))
    return GatherElements(dim)(x, index)


@converter(aten.take.default)
def take(x: Value, index: Value) -> Value:
    return Gather(0)(reshaped(x, (x.type.numel,)), wrapped(index, x.type.numel))


@converter(aten.index.Tensor)
def index_tensor(x: Value, indices: list[Value | None]) -> Value:
    """x[i, :, j]: the indexed dimensions are moved to the front, flattened, and gathered by one index."""
    dims = [d for d, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    if any(i.type.dtype in (torch.bool, torch.uint8) for i in given):
        raise Unsupported("an index by a mask: the size of its result depends on the data")
    rest = [d for d in range(x.type.rank) if d not in dims]
    shape = broadcast(*(i.type.shape for i in given))
    sizes = [x.type.shape[d] for d in dims]
    moved = permuted(x, dims + rest)
    rows = product(sizes)
    flat = reshaped(moved, (rows, *(x.type.shape[d] for d in rest)))
    taken = Gather(0)(flat, row_number(given, sizes, shape))
    # where the indexed dimensions stand together, the result has index's dimensions in their place, else in front
    front = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    n = len(shape)
    return permuted(taken, [*range(n, n + front), *range(n), *range(n + front, n + len(rest))]) if front else taken


@converter(aten.flip.default)
def flip(x: Value, dims: list[int]) -> Value:
    for dim in dims:
        size = x.type.shape[dim % x.type.rank]
        if not isinstance(size, int):
            raise Unsupported(f"a flip along a dimension of the symbolic size {simplify(size)}")
        x = Gather(dim % x.type.rank)(x, constant(torch.arange(size - 1, -1, -1), "reversed"))
    return x
