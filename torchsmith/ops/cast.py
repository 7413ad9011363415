"""Casts between element types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import SHORT_NAMES, TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class Cast(Op):
    """The same numbers as another dtype; floats go to integers by truncation, to bool by `!= 0`. Source: aten._to_copy."""

    dtype: torch.dtype

    def infer(self, x: TensorType) -> TensorType:
        if self.dtype not in SHORT_NAMES:
            raise Unsupported(f"a cast to {self.dtype}, which the IR does not have")
        if torch.float8_e4m3fn in (self.dtype, x.dtype):
            raise Unsupported(f"a cast of {x} to {self.dtype}; floats of eight bits are quantized and dequantized")
        return x.with_dtype(self.dtype)

    def reference(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


@converter(
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.to.prim_Device, aten.to.prim_dtype,
    aten._to_copy.default, aten.type_as.default,
)  # fmt: skip
def to(x: Value, *_: Any, **__: Any) -> Value:
    # torch.export has worked the dtype out already; a graph is on one device
    dtype = expected().dtype
    return x if dtype == x.type.dtype else Cast(dtype)(x)
