"""Scaled dot-product attention.

Matrix products around a softmax become one kernel of the CPU engine, as OpenVINO's own attention op does, but without the
transposed copy of the keys that comes with it, and with zeros instead of NaNs in rows that are masked whole.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops
import torch

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.errors import Unsupported
from torchsmith.ops.attention import Attention


@emitter(Attention)
def attention(e: Emission, op: Attention, query: ov.Output, key: ov.Output, value: ov.Output, mask: ov.Output | None = None) -> Any:
    refuse_empty(e)
    if op.probabilities is not None:
        raise Unsupported(f"attention with probabilities in {op.probabilities}, which OpenVINO does not compute in")
    scores = ops.matmul(_scaled(e, query, op.scale), key, False, True)
    if op.causal:
        rows, columns = e.node.inputs[0].type.shape[-2], e.node.inputs[1].type.shape[-2]
        visible = ops.greater_equal(_count(e, e.size(rows), 1), _count(e, e.size(columns), 0))
        scores = ops.add(scores, _bias(e, visible, query))
    if mask is None:
        return ops.matmul(ops.softmax(scores, -1), value, False, False)
    weights = ops.softmax(ops.add(scores, _bias(e, mask, query)), -1)
    # not after the second product, which would keep a transpose there out of the kernel
    weights = ops.multiply(weights, ops.convert(_any(e, mask), query.get_element_type()))
    return ops.matmul(weights, value, False, False)


def _scaled(e: Emission, query: ov.Output, scale: float) -> Any:
    if scale == 1:
        return query
    dtype = e.node.inputs[0].type.dtype
    if torch.tensor(scale, dtype=dtype).item() == torch.tensor(scale, dtype=torch.float32).item():
        return ops.multiply(query, e.number(scale, query))
    # rounding the scale itself would move every score the same way
    wide = ops.convert(query, "f32").output(0)
    return ops.convert(ops.multiply(wide, e.number(scale, wide)), query.get_element_type())


def _bias(e: Emission, mask: ov.Output | ov.Node, like: ov.Output) -> Any:
    """What to add to the scores; a bool mask is true where a key takes part."""
    # so far below every score that its exponential is 0, and not -inf: a row of that alone would give NaNs
    least = e.number(_lowest(e) / 2, like)
    if mask.get_element_type() == ov.Type.boolean:
        return ops.select(mask, e.number(0.0, like), least)
    return ops.maximum(mask, least)


def _any(e: Emission, mask: ov.Output) -> Any:
    """Whether any key takes part, for each query."""
    if mask.get_element_type() != ov.Type.boolean:
        # element by element: the engine's maximum of a row of -inf is the lowest finite number
        mask = ops.greater_equal(mask, e.number(_lowest(e), mask)).output(0)
    return ops.reduce_logical_or(mask, e.ints([-1]), True)


def _lowest(e: Emission) -> float:
    return torch.finfo(e.node.inputs[0].type.dtype).min


def _count(e: Emission, stop: ov.Output, axis: int) -> Any:
    """0, 1, … along the last dimension (axis 0) or the one before it (axis 1)."""
    numbers = ops.range(e.size(0), stop, e.size(1), "i64")
    return ops.unsqueeze(numbers, e.ints([axis]))
