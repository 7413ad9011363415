"""Quantize/dequantize pairs, in the forms that OpenVINO's low precision transformations turn into int8 kernels.

An activation's pair is one FakeQuantize. A weight is an int8 constant, converted, moved by its zero point and scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov
import openvino.opset15 as ops
import torch
from torch import Tensor

from torchsmith.backends.openvino.emit import Emission, element_type, emitter
from torchsmith.ir.graph import Node, Value
from torchsmith.ir.op import Op
from torchsmith.ops.convolution import Convolution, ConvolutionTransposed
from torchsmith.ops.linear import Linear
from torchsmith.ops.matmul import MatMul
from torchsmith.ops.permute import Permute
from torchsmith.ops.quantize import LIMITS, Dequantize, Quantize

# Which dimension of a layer's weight its results are.
RESULT_AXES: dict[type[Op], int] = {Convolution: 0, ConvolutionTransposed: 1, Linear: 0, MatMul: -1}


@emitter(Quantize)
def quantize(e: Emission, op: Quantize, x: ov.Output, scale: ov.Output, zero_point: ov.Output | None = None) -> Any:
    type_ = element_type(op.dtype).to_string()
    integers = [ops.constant(float(limit), ov.Type.f32) for limit in LIMITS[op.dtype]]
    return ops.convert(_fake_quantize(e, e.node, x, integers), type_)


@emitter(Dequantize)
def dequantize(e: Emission, op: Dequantize, q: ov.Output, scale: ov.Output, zero_point: ov.Output | None = None) -> Any:
    rank = e.node.inputs[0].type.rank
    element_type(e.node.inputs[0].type.dtype)
    before = e.producers.get(e.node.inputs[0])
    if before is not None and isinstance(before.op, Quantize) and _is_pair(e, before, e.node):
        y: Any = _fake_quantize(e, before, e.outputs[before.inputs[0]])
    elif e.node.inputs[0] in e.graph.constants and _stays_float(e, e.node.outputs[0], op.axis):
        y = e.constant(op.reference(*(e.graph.constants[value] for value in e.node.inputs)).float())
    else:
        y = ops.convert(q, "f32")
        if zero_point is not None:
            y = ops.subtract(y, _along(e, ops.convert(zero_point, "f32"), op.axis, rank))
        y = ops.multiply(y, _along(e, scale, op.axis, rank))
    return y if op.dtype == torch.float32 else ops.convert(y, element_type(op.dtype).to_string())


def _stays_float(e: Emission, weight: Value, axis: int | None) -> bool:
    """Whether OpenVINO 2026.4 computes something else where it gets a weight as integers and a scale."""
    return not _scales_results(e, weight, axis) or any(weight in n.inputs and _is_spread_and_dilated(n.op) for n in e.graph.nodes)


def _is_spread_and_dilated(op: Op) -> bool:
    """Whether it is a transposed convolution with a stride and a dilation, whose int8 kernel is wrong by a tenth and more."""
    return isinstance(op, ConvolutionTransposed) and max(op.stride) > 1 and max(op.dilation) > 1


def _scales_results(e: Emission, weight: Value, axis: int | None) -> bool:
    """Whether each channel of a weight has a result of its own wherever it is used, so that its scale can come after the sum.

    OpenVINO 2026.4 computes something else in matrix products whose weights have a scale for each number that is summed up.
    """
    if axis is None:
        return True
    users = [node for node in e.graph.nodes if weight in node.inputs]
    return all(
        _scales_results(e, node.outputs[0], node.op.dims.index(axis))
        if isinstance(node.op, Permute)
        else type(node.op) in RESULT_AXES and node.inputs[1] is weight and axis == RESULT_AXES[type(node.op)] % weight.type.rank
        for node in users
    )


def _is_pair(e: Emission, quantized: Node, dequantized: Node) -> bool:
    """Whether both have the same scale and zero point, along the same dimension."""
    axes = [node.op.attributes()["axis"] for node in (quantized, dequantized)]
    return axes[0] == axes[1] and _parameters(e, quantized) == _parameters(e, dequantized)


def _parameters(e: Emission, node: Node) -> list[Any]:
    known = [e.graph.constants.get(value) for value in node.inputs[1:]]
    return [value if tensor is None else tensor.tolist() for value, tensor in zip(node.inputs[1:], known, strict=True)]


def _fake_quantize(e: Emission, node: Node, x: ov.Output, outputs: Sequence[Any] | None = None) -> Any:
    """A `Quantize` as FakeQuantize, whose results lie between `outputs`; by default where its arguments lie.

    The limits are constants: by them OpenVINO tells whether a model is quantized. It runs in int8 what has all 256 levels, so
    that a narrower range is cut out before.
    """
    op = node.op
    assert isinstance(op, Quantize), node
    y: Any = x if x.get_element_type() == ov.Type.f32 else ops.convert(x, "f32")
    all_integers = LIMITS[op.dtype]
    if (op.low, op.high) != all_integers:
        low, high = _limits(e, node, (op.low, op.high))
        if op.axis is None:
            y = ops.clamp(y, float(low), float(high))
        else:
            y = ops.minimum(ops.maximum(y, e.constant(low)), e.constant(high))
    limits = [e.constant(limit) for limit in _limits(e, node, all_integers)]
    return ops.fake_quantize(y, *limits, *(outputs or limits), 256)


def _limits(e: Emission, node: Node, integers: tuple[int, int]) -> list[Tensor]:
    """The numbers that the integers stand for, shaped to be broadcast. Where a node is emitted alone, no constants are known."""
    known = [e.graph.constants.get(value, torch.ones([1] * value.type.rank)) for value in node.inputs[1:]]
    scale, zero_point = known[0], known[1].float() if len(known) > 1 else torch.zeros(())
    axis = node.op.attributes()["axis"]
    shape = [] if axis is None else [-1 if dim == axis else 1 for dim in range(node.inputs[0].type.rank)]
    return [((integer - zero_point) * scale).reshape(shape) for integer in integers]


def _along(e: Emission, numbers: Any, axis: int | None, rank: int) -> Any:
    """Numbers per channel, shaped to be broadcast along dimension `axis`."""
    return numbers if axis is None else ops.reshape(numbers, e.ints([-1 if dim == axis else 1 for dim in range(rank)]), False)
