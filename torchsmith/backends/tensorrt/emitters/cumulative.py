"""Running totals. Sums are a layer, products a loop."""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import SMALL, dtype_of, filled, wide, wrapped
from torchsmith.backends.tensorrt.library import title, trt
from torchsmith.errors import Unsupported
from torchsmith.ops.cumulative import Cumulative


@emitter(Cumulative)
def cumulative(e: Emission, op: Cumulative, x: Any) -> Any:
    dtype = e.node.inputs[0].type.dtype
    if dtype == torch.bool:
        raise Unsupported(f"TensorRT has no running {op.function} of bools")
    x = e.to(x, torch.int32) if dtype == torch.int8 else wide(e, x)
    y = _sums(e, op, x) if op.function == "sum" else _products(e, op, x)
    return wrapped(e, y, dtype) if dtype in SMALL else e.to(y, dtype)


def _sums(e: Emission, op: Cumulative, x: Any) -> Any:
    if not hasattr(e.network, "add_cumulative"):
        raise Unsupported(f"{title()} has no running sums; 10.8 and later have")
    axis = e.number(op.dim, torch.int32)
    return e.layer(e.network.add_cumulative(x, axis, trt().CumulativeOperation.SUM, False, False))


def _products(e: Emission, op: Cumulative, x: Any) -> Any:
    shape = e.node.inputs[0].type.shape
    ones = filled(e, 1, dtype_of(x), shape[: op.dim] + shape[op.dim + 1 :])
    steps = e.reshape_to(e.to(e.size(shape[op.dim]), torch.int32), ())
    loop = e.network.add_loop()
    loop.add_trip_limit(steps, trt().TripLimit.COUNT)
    kept = loop.add_recurrence(ones)
    after = e.binary("PROD", e.layer(kept), e.layer(loop.add_iterator(x, op.dim, False)))
    kept.set_input(1, after)
    every = loop.add_loop_output(after, trt().LoopOutput.CONCATENATE, op.dim)
    every.set_input(1, steps)
    return e.layer(every)
