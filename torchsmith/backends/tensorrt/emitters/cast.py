"""Casts. Integers that do not fit eight bits keep the lowest eight."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, data_type, emitter
from torchsmith.backends.tensorrt.emitters._pieces import SMALL, is_float, like, no, wrapped
from torchsmith.ops.cast import Cast


@emitter(Cast)
def cast(e: Emission, op: Cast, x: Any) -> Any:
    given = e.node.inputs[0].type.dtype
    data_type(op.dtype)
    if op.dtype == torch.bool and given != torch.bool:
        x = e.to(x, torch.int32) if given == torch.int8 else x
        return no(e, e.binary("EQUAL", x, like(e, 0, x)))
    if op.dtype in SMALL and given not in (op.dtype, torch.bool):
        return wrapped(e, e.to(x, torch.int32) if is_float(x) or given == torch.int8 else x, op.dtype)
    return e.to(x, op.dtype)
