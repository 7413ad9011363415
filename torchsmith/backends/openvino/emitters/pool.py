"""Pooling over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.errors import Unsupported
from torchsmith.ops.pool import AvgPool, MaxPool, MaxPoolIndices


def _rounding(ceil_mode: bool) -> str:
    return "ceil_torch" if ceil_mode else "floor"


@emitter(MaxPool)
def max_pool(e: Emission, op: MaxPool, x: ov.Output) -> Any:
    refuse_empty(e)
    if not x.get_element_type().is_real():
        raise Unsupported("OpenVINO's CPU engine pools integers in float32, which rounds above 2^24")
    y = ops.max_pool(x, op.stride, op.dilation, op.padding, op.padding, op.kernel, _rounding(op.ceil_mode), "explicit", "i32", 2)
    return y.output(0)


@emitter(MaxPoolIndices)
def max_pool_indices(e: Emission, op: MaxPoolIndices, x: ov.Output) -> Any:
    raise Unsupported("OpenVINO's CPU engine gives the greatest elements of windows without their indices")


@emitter(AvgPool)
def avg_pool(e: Emission, op: AvgPool, x: ov.Output) -> Any:
    refuse_empty(e)
    padding, include = op.padding, op.count_include_pad
    if op.divisor:
        padding, include, overhang = (0,) * len(padding), True, _overhang(e, op)
        x = _padded(e, x, op.padding, [p + more for p, more in zip(op.padding, overhang, strict=True)])
    elif op.ceil_mode and include and any(padding):
        # the engine would count what hangs over, too: make the padding real, and count what is there
        x = _padded(e, x, padding, padding)
        padding, include = (0,) * len(padding), False
    rounding = _rounding(op.ceil_mode and not op.divisor)
    y = ops.avg_pool(x, op.stride, padding, padding, op.kernel, not include, rounding, "explicit")
    return ops.multiply(y, e.number(math.prod(op.kernel) / op.divisor, x)) if op.divisor else y


def _overhang(e: Emission, op: AvgPool) -> list[int]:
    """By how much the last windows hang over the padding."""
    given, wanted = (v.type.shape[2:] for v in (e.node.inputs[0], e.node.outputs[0]))
    if not op.ceil_mode:
        return [0] * len(given)
    if not all(isinstance(size, int) for size in (*given, *wanted)):
        raise Unsupported(f"average pooling with ceil_mode and divisor_override over sizes {given}, which must be known")
    sizes = zip(given, wanted, op.kernel, op.stride, op.padding, strict=True)
    return [max((int(out) - 1) * s + k - int(size) - 2 * p, 0) for size, out, k, s, p in sizes]


def _padded(e: Emission, x: ov.Output, before: Sequence[int], after: Sequence[int]) -> ov.Output:
    return ops.pad(x, e.ints([0, 0, *before]), e.ints([0, 0, *after]), "constant", e.number(0.0, x)).output(0)
