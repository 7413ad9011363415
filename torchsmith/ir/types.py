"""Types of the values that flow through a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchsmith.ir.dim import Dim, Shape, bind, dim_of, product, same

SHORT_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class TensorType:
    """An element type and a shape, whose sizes may be symbolic."""

    shape: Shape
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(size, int) for size in self.shape)

    @property
    def numel(self) -> Dim:
        return product(self.shape)

    def with_shape(self, *shape: Dim) -> TensorType:
        return replace(self, shape=tuple(shape))

    def with_dtype(self, dtype: torch.dtype) -> TensorType:
        return replace(self, dtype=dtype)

    def matches(self, other: TensorType) -> bool:
        """Whether both are the same type, sizes compared as expressions."""
        return self.dtype == other.dtype and self.rank == other.rank and all(map(same, self.shape, other.shape))

    def __str__(self) -> str:
        return f"{SHORT_NAMES.get(self.dtype, str(self.dtype))}[{', '.join(map(str, self.shape))}]"


def type_of(tensor: Tensor) -> TensorType:
    """The type of a real or fake tensor. Raises Unsupported for a data-dependent size."""
    return TensorType(tuple(dim_of(size) for size in tensor.shape), tensor.dtype)


def shape_under(type: TensorType, env: dict[str, int]) -> tuple[int, ...]:
    """The type's shape with its symbols replaced by numbers."""
    shape: tuple[int, ...] = bind(type.shape, env)
    return shape
