"""Casts between element types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
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
        return x.with_dtype(self.dtype)

    def reference(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def _cast(x: Value, dtype: torch.dtype | None) -> Value:
    return x if dtype in (None, x.type.dtype) else Cast(dtype)(x)


@converter(aten.to.dtype, aten._to_copy.default)
def to_dtype(x: Value, dtype: torch.dtype | None = None, *_: Any, **__: Any) -> Value:
    return _cast(x, dtype)


@converter(aten.to.device)
def to_device(x: Value, device: torch.device, dtype: torch.dtype, *_: Any, **__: Any) -> Value:
    return _cast(x, dtype)


@converter(aten.to.dtype_layout)
def to_dtype_layout(x: Value, *, dtype: torch.dtype | None = None, **_: Any) -> Value:
    return _cast(x, dtype)


@converter(aten.type_as.default)
def type_as(x: Value, other: Value) -> Value:
    return _cast(x, other.type.dtype)
