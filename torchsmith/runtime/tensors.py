"""Small things about tensors that several files need."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name such as "float32". Raises ValueError for another name."""
    dtype = getattr(torch, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no dtype of torch {torch.__version__}")
    return dtype


def to_bytes(tensor: Tensor) -> bytes:
    """A copy of a contiguous CPU tensor's bytes, without numpy."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu", (tensor.stride(), tensor.device)
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


def view_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable; the tensor must outlive it."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu", (tensor.stride(), tensor.device)
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


def engine_tensor(engine: bytes) -> Tensor:
    """Engine bytes as the 1-D uint8 tensor that a program carries."""
    tensor = torch.empty(len(engine), dtype=torch.uint8)
    view_of(tensor)[:] = engine
    return tensor
