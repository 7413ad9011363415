"""The same elements, in the same order, in another shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import Shape, product, same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class Reshape(Op):
    """x's elements in row-major order, as `shape`. Source: aten.reshape."""

    moves_data = True
    shape: Shape

    def infer(self, x: TensorType) -> TensorType:
        if not same(x.numel, product(self.shape)):
            raise Unsupported(f"a reshape of {x} to {self.shape}, which has another number of elements")
        return x.with_shape(*self.shape)

    def reference(self, x: Tensor) -> Tensor:
        return x.reshape(self.shape)


def reshaped(x: Value, shape: Shape) -> Value:
    """x in another shape; x itself where it has that shape."""
    if len(shape) == x.type.rank and all(map(same, x.type.shape, shape)):
        return x
    return Reshape(shape)(x)


@converter(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.reshape_as.default,
    aten.view_as.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def reshape(x: Value, *_: Any, **__: Any) -> Value:
    # torch.export has worked the shape out already, -1 included
    return reshaped(x, expected().shape)
