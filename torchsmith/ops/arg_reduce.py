"""Where along a dimension the greatest or the smallest element is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ir.builder import expected
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import cast
from torchsmith.ops.reduce import reduced, reduced_shape
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class ArgReduce(Op):
    """The index (int64) of the first element along `dim` (not negative) that is the max or the min. Source: aten.argmax.

    function: "max" or "min".
    """

    function: str
    dim: int
    keepdim: bool

    def infer(self, x: TensorType) -> TensorType:
        assert 0 <= self.dim < x.rank, f"{self} of {x}"
        return TensorType(reduced_shape(x, [self.dim], self.keepdim), torch.int64)

    def reference(self, x: Tensor) -> Tensor:
        return (torch.argmax if self.function == "max" else torch.argmin)(x, self.dim, self.keepdim)

    def __str__(self) -> str:
        return f"ArgReduce[{self.function}](dim={self.dim}, keepdim={self.keepdim})"


def _register(function: str) -> None:
    @converter(getattr(aten, f"arg{function}").default)
    def convert(x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None or x.type.rank == 0:
            found = ArgReduce(function, 0, False)(reshaped(x, (x.type.numel,)))
            return reshaped(found, expected().shape)
        return ArgReduce(function, dim % x.type.rank, keepdim)(x)

    @converter(getattr(aten, function).dim)
    def convert_dim(x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        values = reduced(function, x, dim, keepdim)
        # bools have an order, and PyTorch no argmax of them
        x = cast(x, torch.uint8) if x.type.dtype == torch.bool else x
        x = reshaped(x, (1,)) if x.type.rank == 0 else x
        return values, reshaped(ArgReduce(function, dim % x.type.rank, keepdim)(x), values.type.shape)


_register("max")
_register("min")
