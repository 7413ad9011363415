"""Root-mean-square normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import current
from torchsmith.ir.dim import Dim
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.layer_norm import check_parameter, scaled
from torchsmith.ops.promote import cast, scalar
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.registry import converter
from torchsmith.ops.unary import Unary

aten = torch.ops.aten


@dataclass(frozen=True)
class RmsNorm(Op):
    """x / sqrt(mean of squares + eps) * weight, with the mean over the last `dims` dimensions, in float32 at least.

    weight has these dimensions, and may be missing. Source: aten.rms_norm.
    """

    dims: int
    eps: float

    def infer(self, x: TensorType, weight: TensorType | None = None) -> TensorType:
        if not 1 <= self.dims <= x.rank or not x.dtype.is_floating_point:
            raise Unsupported(f"RMS norm of the last {self.dims} dimensions of {x}; it takes a floating dtype")
        check_parameter(weight, x, x.shape[-self.dims :])
        return x

    def reference(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return torch.rms_norm(x, x.shape[-self.dims :], weight, self.eps)


def _eps(x: Value, eps: float | None) -> float:
    # of the dtype that PyTorch computes in
    return torch.finfo(torch.promote_types(x.type.dtype, torch.float32)).eps if eps is None else eps


@converter(aten.rms_norm.default)
def rms_norm(x: Value, shape: Sequence[Dim], weight: Value | None = None, eps: float | None = None) -> Value:
    return scaled(RmsNorm(len(shape), _eps(x, eps)), x, weight, None)


@converter(aten._fused_rms_norm.default)
def fused_rms_norm(x: Value, shape: Sequence[Dim], weight: Value | None, eps: float | None) -> tuple[Value, ...]:
    wide = cast(x, torch.promote_types(x.type.dtype, torch.float32))
    dims = tuple(range(x.type.rank - len(shape), x.type.rank))
    squares = Reduce("mean", dims, True)(Binary("mul")(wide, wide))
    rstd = Unary("rsqrt")(Binary("add")(squares, scalar(_eps(x, eps), wide.type.dtype)))
    return rms_norm(x, shape, weight, eps), cast(rstd, current().expected[1].dtype)
