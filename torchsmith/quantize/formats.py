"""The numbers that eight bits have, in either of two forms: whole numbers, and floats of four bits of exponent (fp8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ops.quantize import FP8, LIMITS


@dataclass(frozen=True)
class Format:
    """What weights are rounded to, symmetrically. greatest: what a channel's greatest magnitude becomes, in steps."""

    dtype: torch.dtype
    greatest: int

    def nearest(self, x: Tensor) -> Tensor:
        """The format's nearest numbers, with ties to even; float32. x: in steps, float32."""
        limited = x.clamp(-self.greatest, self.greatest)
        return limited.to(FP8).float() if self.dtype == FP8 else limited.round_()


# int8 goes without -128
FORMATS = {format.dtype: format for format in (Format(torch.int8, LIMITS[torch.int8][1]), Format(FP8, LIMITS[FP8][1]))}
