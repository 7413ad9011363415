"""Running totals along a dimension, and differences, which undo them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import simplify
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import binary
from torchsmith.ops.compare import compare
from torchsmith.ops.concat import concatenated
from torchsmith.ops.promote import cast
from torchsmith.ops.registry import converter
from torchsmith.ops.slice import sliced

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


@converter(aten.diff.default)
def diff(x: Value, n: int = 1, dim: int = -1, prepend: Value | None = None, append: Value | None = None) -> Value:
    x = concatenated([cast(part, expected().dtype) for part in (prepend, x, append) if part is not None], dim)
    for _ in range(n):
        size = x.type.shape[dim]
        if isinstance(size, int) and size == 0:
            return x
        if not isinstance(size, int) and n > 1:
            raise Unsupported(f"differences {n} times along a dimension of size {size}, which may be too few")
        later, earlier = sliced(x, dim, 1, size), sliced(x, dim, 0, simplify(size - 1))
        x = compare("ne", later, earlier) if x.type.dtype == torch.bool else binary("sub", later, earlier)
    return x
