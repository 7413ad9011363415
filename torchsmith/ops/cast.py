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
from torchsmith.ops.float8 import FP8, GREATEST
from torchsmith.ops.registry import converter

aten = torch.ops.aten


@dataclass(frozen=True)
class Cast(Op):
    """The same numbers as another dtype; floats go to integers by truncation, to bool by `!= 0`. Source: aten._to_copy."""

    dtype: torch.dtype

    def infer(self, x: TensorType) -> TensorType:
        if self.dtype not in SHORT_NAMES:
            raise Unsupported(f"a cast to {self.dtype}, which the IR does not have")
        if FP8 in (self.dtype, x.dtype):
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
    if dtype == x.type.dtype:
        return x
    return _float8(x, dtype) if FP8 in (dtype, x.type.dtype) else Cast(dtype)(x)


def _float8(x: Value, dtype: torch.dtype) -> Value:
    """A cast to or from fp8, as the half of a quantize/dequantize pair whose scale is 1. Beyond its greatest number it saturates,
    as PyTorch's own casts do in most versions.
    """
    from torchsmith.ops.quantize import dequantize, quantize  # which needs casts

    if dtype == FP8:
        return quantize(x, 1.0, None, None, -GREATEST, GREATEST, FP8)
    return dequantize(x, 1.0, None, None, dtype)
