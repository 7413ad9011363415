"""Where the greatest or the smallest element is: the least index of those that equal it. NaN counts as both."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import (
    any_of,
    dtype_of,
    is_float,
    is_nan,
    like,
    numbers_along,
    reduced,
    select,
)
from torchsmith.ops.arg_reduce import ArgReduce


@emitter(ArgReduce)
def arg_reduce(e: Emission, op: ArgReduce, x: Any) -> Any:
    if dtype_of(x) in (torch.int8, torch.bool):
        x = e.to(x, torch.int32)
    given = e.node.inputs[0].type
    found = e.binary("EQUAL", x, reduced(e, op.function.upper(), x, [op.dim], True))
    if is_float(x):
        unknown = is_nan(e, x)
        found = select(e, any_of(e, unknown, [op.dim], True), unknown, found)
    numbers = numbers_along(e, given.shape[op.dim], op.dim, given.rank)
    beyond = like(e, torch.iinfo(torch.int64).max, numbers)
    return reduced(e, "MIN", select(e, found, numbers, beyond), [op.dim], op.keepdim)
