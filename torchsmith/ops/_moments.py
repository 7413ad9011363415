"""Mean and spread, which normalisations give and take."""

from __future__ import annotations

import torch

from torchsmith.ir.graph import Value
from torchsmith.ops.binary import Binary
from torchsmith.ops.promote import cast, scalar
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.unary import Unary


def moments(x: Value, dims: tuple[int, ...], eps: float) -> tuple[Value, Value]:
    """The mean, and one over the standard deviation, over `dims`, which stay with size 1."""
    wide = cast(x, torch.promote_types(x.type.dtype, torch.float32))
    mean = Reduce("mean", dims, True)(wide)
    centred = Binary("sub")(wide, mean)
    variance = Reduce("mean", dims, True)(Binary("mul")(centred, centred))
    return mean, Unary("rsqrt")(Binary("add")(variance, scalar(eps, wide.type.dtype)))
