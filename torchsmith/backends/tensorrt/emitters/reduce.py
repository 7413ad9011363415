"""Reductions. 16-bit floats are added and multiplied in float32."""

from __future__ import annotations

import math
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import SMALL, any_of, is_float, is_nan, like, no, reduced, select, wide, wrapped
from torchsmith.ops.reduce import Reduce

OPERATIONS = {"sum": "SUM", "mean": "AVG", "max": "MAX", "min": "MIN", "prod": "PROD", "l1": "SUM", "l2": "SUM"}
# On bools the sum is or, and the product and.
ANY = ("any", "max", "sum")


@emitter(Reduce)
def reduce(e: Emission, op: Reduce, x: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    if not op.dims:
        return e.unary("ABS", x) if op.function in ("l1", "l2") else x
    if dtype == torch.bool:
        if op.function in ANY:
            return any_of(e, x, op.dims, op.keepdim)
        return no(e, any_of(e, no(e, x), op.dims, op.keepdim))
    if not is_float(x):
        y = reduced(e, OPERATIONS[op.function], e.to(x, torch.int32) if dtype == torch.int8 else x, op.dims, op.keepdim)
        return wrapped(e, y, dtype) if dtype in SMALL else y
    if op.function in ("max", "min"):
        return _extreme(e, op, x)
    return e.to(_of_floats(e, op, wide(e, x)), dtype)


def _of_floats(e: Emission, op: Reduce, x: Any) -> Any:
    if op.function == "l1":
        x = e.unary("ABS", x)
    elif op.function == "l2":
        x = e.binary("PROD", x, x)
    y = reduced(e, OPERATIONS[op.function], x, op.dims, op.keepdim)
    return e.unary("SQRT", y) if op.function == "l2" else y


def _extreme(e: Emission, op: Reduce, x: Any) -> Any:
    """NaN where there is one, which TensorRT may pass over."""
    y = reduced(e, OPERATIONS[op.function], x, op.dims, op.keepdim)
    return select(e, any_of(e, is_nan(e, x), op.dims, op.keepdim), like(e, math.nan, y), y)
