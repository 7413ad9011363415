"""Element types by the names that Torch-TensorRT's users know."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from torchsmith.errors import InvalidOption


class dtype(Enum):
    """An element type. Every member has the matching `torch.dtype` as its `.torch`."""

    b = torch.bool
    u8 = torch.uint8
    i8 = torch.int8
    i32 = torch.int32
    i64 = torch.int64
    f16 = torch.float16
    f32 = torch.float32
    f64 = torch.float64
    bf16 = torch.bfloat16
    f8 = torch.float8_e4m3fn
    # the longer names are aliases
    bool = torch.bool
    uint8 = torch.uint8
    int8 = torch.int8
    int32 = torch.int32
    int = torch.int32
    int64 = torch.int64
    long = torch.int64
    half = torch.float16
    fp16 = torch.float16
    float16 = torch.float16
    float = torch.float32
    fp32 = torch.float32
    float32 = torch.float32
    double = torch.float64
    fp64 = torch.float64
    float64 = torch.float64
    bfloat16 = torch.bfloat16
    fp8 = torch.float8_e4m3fn
    float8_e4m3fn = torch.float8_e4m3fn

    @property
    def torch(self) -> torch.dtype:
        value: torch.dtype = self.value
        return value

    @staticmethod
    def of(name: Any) -> dtype:
        """Read a member, a `torch.dtype` or a name. Raises InvalidOption for what is no element type."""
        if isinstance(name, dtype):
            return name
        if isinstance(name, str) and name.removeprefix("torch.") in dtype.__members__:
            return dtype.__members__[name.removeprefix("torch.")]
        if isinstance(name, torch.dtype) and any(name is member.value for member in dtype):
            return dtype(name)
        raise InvalidOption(f"{name!r} is no element type that torchsmith has; it takes one of {', '.join(dtype.__members__)}")
