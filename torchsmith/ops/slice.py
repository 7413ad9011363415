"""A range of a tensor along one dimension."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import current, expected
from torchsmith.ir.dim import Dim, floordiv, same, simplify, total
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class Slice(Op):
    """x[start:end:step] along `dim` (not negative), with 0 <= start <= end <= size and step > 0. Source: aten.slice."""

    moves_data = True
    dim: int
    start: Dim
    end: Dim
    step: int = 1

    def infer(self, x: TensorType) -> TensorType:
        length = simplify(self.end - self.start)
        size = length if self.step == 1 else floordiv(simplify(length + self.step - 1), self.step)
        return x.with_shape(*x.shape[: self.dim], size, *x.shape[self.dim + 1 :])

    def reference(self, x: Tensor) -> Tensor:
        return torch.ops.aten.slice(x, self.dim, self.start, self.end, self.step)


def sliced(x: Value, dim: int, start: Dim, end: Dim, step: int = 1) -> Value:
    """x[start:end:step]; x itself where that is all of it."""
    dim %= x.type.rank
    if same(start, 0) and same(end, x.type.shape[dim]) and step == 1:
        return x
    return Slice(dim, start, end, step)(x)


def _position(given: Dim | None, default: Dim, size: Dim) -> Dim:
    """An end of a slice as Python means it: counted from the end where negative, and never past either end."""
    if given is None:
        return default
    if isinstance(given, int) and isinstance(size, int):
        return min(max(given + size if given < 0 else given, 0), size)
    if isinstance(given, int):
        if given < 0:
            return simplify(size + given)
        return size if given >= 2**62 else given
    if given.could_extract_minus_sign():
        return simplify(size + given)
    return given


@converter(aten.slice.Tensor)
def slice_tensor(x: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1) -> Value:
    dim %= x.type.rank
    size, wanted = x.type.shape[dim], expected().shape[dim]
    low, high = _position(start, 0, size), _position(end, size, size)
    if step == 1 and not all(isinstance(s, int) for s in (size, low, high)):
        # torch.export knows how long the result is, also where an end lies past a symbolic size
        if same(wanted, size):
            return x
        high = simplify(low + wanted)
    if isinstance(low, int) and isinstance(high, int):
        high = max(low, high)
    return sliced(x, dim, low, high, step)


@converter(aten.narrow.default)
def narrow(x: Value, dim: int, start: Dim, length: Dim) -> Value:
    first = _position(start, 0, x.type.shape[dim])
    return sliced(x, dim, first, simplify(first + length))


@converter(aten.select.int)
def select(x: Value, dim: int, index: Dim) -> Value:
    if isinstance(index, sympy.Expr) and index.free_symbols and index.could_extract_minus_sign():
        raise Unsupported(f"a selection at the symbolic index {index}")
    first = _position(index, 0, x.type.shape[dim])
    return reshaped(sliced(x, dim, first, simplify(first + 1)), expected().shape)


@converter(
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.split.sizes,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.unsafe_split.Tensor,
)
def split(x: Value, sizes: object, dim: int = 0) -> tuple[Value, ...]:
    parts = [t.shape[dim] for t in current().expected]
    ends = [total(parts[: i + 1]) for i in range(len(parts))]
    return tuple(sliced(x, dim, simplify(end - part), end) for part, end in zip(parts, ends))


@converter(aten.unbind.int)
def unbind(x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(reshaped(sliced(x, dim, i, i + 1), t.shape) for i, t in enumerate(current().expected))
