"""Reductions.

NaN is passed over by `max` and `min`, where PyTorch gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, as_output, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.reduce import Reduce

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": ops.reduce_sum,
    "mean": ops.reduce_mean,
    "max": ops.reduce_max,
    "min": ops.reduce_min,
    "prod": ops.reduce_prod,
    "any": ops.reduce_logical_or,
    "all": ops.reduce_logical_and,
    "l1": ops.reduce_l1,
    "l2": ops.reduce_l2,
}
ON_BOOLS = {"max": "any", "min": "all", "prod": "all"}
WIDE = (ov.Type.i32, ov.Type.i64)


@emitter(Reduce)
def reduce(e: Emission, op: Reduce, x: ov.Output) -> Any:
    kind, function = x.get_element_type(), op.function
    if not op.dims:
        return ops.absolute(x) if function in ("l1", "l2") else x
    if function == "mean" and any(e.node.inputs[0].type.shape[dim] == 0 for dim in op.dims):
        raise Unsupported("OpenVINO's mean of no elements is 0, and PyTorch's NaN")
    if kind == ov.Type.boolean:
        function = ON_BOOLS.get(function, function)
    elif kind.is_integral():
        return _of_integers(e, op, x)
    return FUNCTIONS[function](x, e.ints(op.dims), op.keepdim)


def _of_integers(e: Emission, op: Reduce, x: ov.Output) -> Any:
    """Its reductions round integers to float32; its running sums and its TopK do not."""
    for dim in op.dims:
        if op.function == "sum":
            # a zero in front, so that the last running sum is there for no elements too
            rank = x.get_partial_shape().rank.get_length()
            front = e.ints([int(axis == dim) for axis in range(rank)])
            padded = ops.pad(x, front, e.ints([0] * rank), "constant", e.number(0, x))
            running = ops.cum_sum(padded, ops.constant(dim, ov.Type.i64))
            x = as_output(ops.slice(running, e.ints([-1]), e.ints([2**31 - 1]), e.ints([1]), e.ints([dim])))
        elif op.function in ("max", "min"):
            x = ops.topk(x, ops.constant(1, ov.Type.i64), dim, op.function, "none", "i32").output(0)
        else:
            raise Unsupported(f"OpenVINO takes the {op.function} of integers in float32, which loses digits beyond 2**24")
    return x if op.keepdim else ops.squeeze(x, e.ints(op.dims))
