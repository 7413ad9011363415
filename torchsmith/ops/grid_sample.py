"""Images sampled at given places."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.registry import converter

aten = torch.ops.aten

# In the order of ATen's numbers.
MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class GridSample(Op):
    """x: (N, C, H, W), sampled at grid: (N, OH, OW, 2), gives (N, C, OH, OW); or (N, C, D, H, W) at (N, OD, OH, OW, 3).

    Both of one floating dtype. grid: places in x, the width's first, with -1 and 1 at its ends: the centres of the corner pixels
    with align_corners, their outer edges without. mode: "bilinear" (of three dimensions too), "nearest" (a place between two
    pixels takes the even one) or "bicubic" (Keys' with -0.75, of two dimensions). padding_mode: what is outside: "zeros", the
    pixel at the "border", or what a "reflection" at the ends meets. Places are found in float32, or in float64 where the dtype
    is that: in half precision they would be pixels off. Source: aten.grid_sampler.
    """

    mode: str
    padding_mode: str
    align_corners: bool = False

    def infer(self, x: TensorType, grid: TensorType) -> TensorType:
        if not x.dtype.is_floating_point or x.dtype != grid.dtype:
            raise Unsupported(f"samples of {x} at {grid}; both must have one floating dtype")
        fits = x.rank in (4, 5) and grid.rank == x.rank and same(x.shape[0], grid.shape[0]) and same(grid.shape[-1], x.rank - 2)
        if not fits:
            raise Unsupported(f"samples of {x} at {grid}; it takes (N, C, H, W) and (N, OH, OW, 2), or one dimension more of both")
        if self.mode == "bicubic" and x.rank == 5:
            raise Unsupported(f"bicubic samples of {x}; they are of two dimensions")
        return x.with_shape(*x.shape[:2], *grid.shape[1:-1])

    def reference(self, x: Tensor, grid: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.grid_sample(x.to(wide), grid.to(wide), self.mode, self.padding_mode, self.align_corners).to(x.dtype)


@converter(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(x: Value, grid: Value, mode: int, padding_mode: int, align_corners: bool) -> Value:
    return GridSample(MODES[mode], PADDINGS[padding_mode], align_corners)(x, grid)


@converter(aten.cudnn_grid_sampler.default)
def cudnn_grid_sampler(x: Value, grid: Value) -> Value:
    """What PyTorch decomposes such samples to on GPUs."""
    return GridSample("bilinear", "zeros", True)(x, grid)
