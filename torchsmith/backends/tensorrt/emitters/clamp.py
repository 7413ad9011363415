"""Limits.

From 0 to a limit is a layer of its own, which others are fused with; TensorRT does not say what it makes of NaN. Elsewhere NaN
stays NaN.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import dtype_of, is_float, like, select
from torchsmith.ops.clamp import Clamp


@emitter(Clamp)
def clamp(e: Emission, op: Clamp, x: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    if not is_float(x):
        return _of_integers(e, op, x, dtype)
    if op.low == 0 and op.high is not None and 0 <= op.high < math.inf:
        return e.activation("CLIP", x, 0.0, float(op.high))
    for order, limit in (("LESS", op.low), ("GREATER", op.high)):
        if limit is not None:
            bound = like(e, limit, x)
            x = select(e, e.binary(order, x, bound), bound, x)
    return x


def _of_integers(e: Emission, op: Clamp, x: Any, dtype: torch.dtype) -> Any:
    x = e.to(x, torch.int32) if dtype == torch.int8 else x
    info = torch.iinfo(dtype_of(x))
    for function, limit in (("MAX", op.low), ("MIN", op.high)):
        if limit is not None:
            x = e.binary(function, x, like(e, int(min(max(limit, info.min), info.max)), x))
    return e.to(x, dtype)
