"""Broadcasting as an op of its own, and repetition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import Shape, broadcast, same, simplify
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class Expand(Op):
    """x broadcast to `shape`. Source: aten.expand."""

    moves_data = True
    shape: Shape

    def infer(self, x: TensorType) -> TensorType:
        result = broadcast(x.shape, self.shape)
        if len(result) != len(self.shape) or not all(map(same, result, self.shape)):
            raise Unsupported(f"{x} does not broadcast to {self.shape}")
        return x.with_shape(*self.shape)

    def reference(self, x: Tensor) -> Tensor:
        return x.expand(self.shape)


@dataclass(frozen=True)
class Tile(Op):
    """x repeated `repeats[i]` times along dimension i, as a whole. One number per dimension of x. Source: aten.repeat."""

    moves_data = True
    repeats: Shape

    def infer(self, x: TensorType) -> TensorType:
        assert len(self.repeats) == x.rank, f"{self} of {x}"
        return x.with_shape(*(simplify(size * count) for size, count in zip(x.shape, self.repeats)))

    def reference(self, x: Tensor) -> Tensor:
        return x.repeat(self.repeats)


def expanded(x: Value, shape: Shape) -> Value:
    """x broadcast to `shape`; x itself where it has that shape."""
    if len(shape) == x.type.rank and all(map(same, x.type.shape, shape)):
        return x
    return Expand(tuple(shape))(x)


@converter(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
def expand(x: Value, *_: Any, **__: Any) -> Value:
    return expanded(x, expected().shape)


@converter(aten.repeat.default, aten.tile.default)
def repeat(x: Value, repeats: list[int]) -> Value:
    counts = [1] * (x.type.rank - len(repeats)) + list(repeats)  # tile may name fewer dimensions
    x = reshaped(x, (1,) * (len(counts) - x.type.rank) + x.type.shape)
    return x if all(same(c, 1) for c in counts) else Tile(tuple(counts))(x)


@converter(aten.repeat_interleave.self_int)
def repeat_interleave(x: Value, repeats: int, dim: int | None = None, output_size: int | None = None) -> Value:
    if dim is None:
        x, dim = reshaped(x, (x.type.numel,)), 0
    dim %= x.type.rank
    before, after = x.type.shape[: dim + 1], x.type.shape[dim + 1 :]
    return reshaped(Expand((*before, repeats, *after))(reshaped(x, (*before, 1, *after))), expected().shape)


@converter(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(tensors: list[Value], indexing: str = "ij") -> tuple[Value, ...]:
    if indexing != "ij":
        raise Unsupported(f"meshgrid(indexing={indexing!r}); it takes 'ij'")
    sizes = tuple(t.type.shape[0] if t.type.rank else 1 for t in tensors)
    return tuple(
        expanded(reshaped(t, tuple(s if i == axis else 1 for i, s in enumerate(sizes))), sizes) for axis, t in enumerate(tensors)
    )


@converter(aten.broadcast_tensors.default)
def broadcast_tensors(tensors: list[Value]) -> tuple[Value, ...]:
    shape = broadcast(*(t.type.shape for t in tensors))
    return tuple(expanded(t, shape) for t in tensors)
