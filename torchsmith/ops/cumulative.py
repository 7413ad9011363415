"""Running totals along a dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ir.builder import expected
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter

aten = torch.ops.aten

FUNCTIONS = {"sum": torch.cumsum, "prod": torch.cumprod}


@dataclass(frozen=True)
class Cumulative(Op):
    """The sum or the product of the elements up to and with each one, along `dim` (not negative). Source: aten.cumsum, cumprod.

    function: "sum" or "prod".
    """

    function: str
    dim: int

    def infer(self, x: TensorType) -> TensorType:
        assert 0 <= self.dim < x.rank, f"{self} of {x}"
        return x

    def reference(self, x: Tensor) -> Tensor:
        return FUNCTIONS[self.function](x, self.dim, dtype=x.dtype)

    def __str__(self) -> str:
        return f"Cumulative[{self.function}](dim={self.dim})"


def _register(function: str) -> None:
    @converter(getattr(aten, f"cum{function}").default)
    def convert(x: Value, dim: int, *, dtype: torch.dtype | None = None) -> Value:
        x = cast(x, expected().dtype)
        return Cumulative(function, dim % x.type.rank)(x) if x.type.rank else x


_register("sum")
_register("prod")
