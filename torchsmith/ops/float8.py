"""The op that rounds to fp8 (e4m3fn) and back, which ATen has not:

    torchsmith::fake_quantize_float8(Tensor x, Tensor scale, int? axis=None) -> Tensor

x: any shape, floating. scale: float32, () or (channels,) along dimension `axis` of x. Gives scale times the number of
float8_e4m3fn that is nearest to x * (1 / scale), ties to even and the greatest one beyond it, in x's dtype. Importing this file
registers the op; it imports nothing else, as a program may run the op in PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
GREATEST = 448

_library: Any = torch.library.Library("torchsmith", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("fake_quantize_float8(Tensor x, Tensor scale, int? axis=None) -> Tensor")


def fake_quantize_float8(x: Tensor, scale: Tensor, axis: int | None = None) -> Tensor:
    axis = axis + x.dim() if axis is not None and axis < 0 else axis
    return dequantized(quantized(x, scale, axis), scale, axis, x.dtype)


def quantized(x: Tensor, scale: Tensor, axis: int | None) -> Tensor:
    """x in fp8. axis: not negative."""
    scaled = x.to(torch.promote_types(x.dtype, torch.float32)) * along(1.0 / scale, axis, x.dim())
    # clamped first: PyTorch's casts saturate in some versions only
    return scaled.clamp(-GREATEST, GREATEST).to(FP8)


def dequantized(q: Tensor, scale: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    """Numbers of fp8 as `dtype`, by way of float32."""
    return (q.to(torch.float32) * along(scale, axis, q.dim())).to(dtype)


def along(numbers: Tensor, axis: int | None, rank: int) -> Tensor:
    """Numbers per channel, shaped to be broadcast along dimension `axis`."""
    return numbers if axis is None else numbers.reshape([-1 if dim == axis else 1 for dim in range(rank)])


_library.impl("fake_quantize_float8", fake_quantize_float8, "CompositeExplicitAutograd")
_library.impl("fake_quantize_float8", lambda x, *_: torch.empty_like(x), "Meta")
