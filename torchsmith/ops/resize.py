"""Images at another size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import expected
from torchsmith.ir.dim import Shape
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Resize(Op):
    """x: (N, C, *spatial) with one to three spatial dimensions, resampled to (N, C, *size).

    mode: "nearest", "nearest-exact", "linear" or "cubic" (two dimensions). align_corners: whether the corner pixels' centres
    stay in place. scales: the factors that the caller gave, by which positions are found; None where it gave sizes.
    Source: aten.upsample_*.
    """

    size: Shape
    mode: str
    align_corners: bool = False
    scales: tuple[float, ...] | None = None

    def infer(self, x: TensorType) -> TensorType:
        if x.rank != len(self.size) + 2 or not x.dtype.is_floating_point:
            raise Unsupported(f"a resize of {x} to {self.size}; it takes (N, C, *spatial) of a floating dtype")
        return x.with_shape(*x.shape[:2], *self.size)

    def reference(self, x: Tensor) -> Tensor:
        rank = len(self.size)
        mode = {"linear": LINEAR[rank], "cubic": "bicubic"}.get(self.mode, self.mode)
        corners = self.align_corners if self.mode in ("linear", "cubic") else None
        if self.scales is None:
            return torch.nn.functional.interpolate(x, size=list(self.size), mode=mode, align_corners=corners)
        return torch.nn.functional.interpolate(
            x, scale_factor=list(self.scales), mode=mode, align_corners=corners, recompute_scale_factor=False
        )


def _resized(x: Value, mode: str, align_corners: bool, scales: list[float | None] | None) -> Value:
    size = expected().shape[2:]
    known = None
    if scales and all(s is not None for s in scales):
        known = tuple(float(s) for s in scales if s is not None)
    return Resize(size, mode, align_corners, known)(x)


@converter(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec)
def nearest_vec(x: Value, output_size: object, scale_factors: list[float | None] | None) -> Value:
    return _resized(x, "nearest", False, scale_factors)


@converter(aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec)
def nearest_exact_vec(x: Value, output_size: object, scale_factors: list[float | None] | None) -> Value:
    return _resized(x, "nearest-exact", False, scale_factors)


@converter(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default, aten.upsample_nearest3d.default)
def nearest(x: Value, output_size: object, *scales: float | None) -> Value:
    return _resized(x, "nearest", False, list(scales))


@converter(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec)
def linear_vec(x: Value, output_size: object, align_corners: bool, scale_factors: list[float | None] | None) -> Value:
    return _resized(x, "linear", align_corners, scale_factors)


@converter(aten.upsample_linear1d.default, aten.upsample_bilinear2d.default, aten.upsample_trilinear3d.default)
def linear(x: Value, output_size: object, align_corners: bool, *scales: float | None) -> Value:
    return _resized(x, "linear", align_corners, list(scales))


@converter(aten.upsample_bicubic2d.vec)
def cubic_vec(x: Value, output_size: object, align_corners: bool, scale_factors: list[float | None] | None) -> Value:
    return _resized(x, "cubic", align_corners, scale_factors)


@converter(aten.upsample_bicubic2d.default)
def cubic(x: Value, output_size: object, align_corners: bool, *scales: float | None) -> Value:
    return _resized(x, "cubic", align_corners, list(scales))
