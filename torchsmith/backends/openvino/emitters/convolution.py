"""Convolutions."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.convolution import Convolution, ConvolutionTransposed


@emitter(Convolution)
def convolution(e: Emission, op: Convolution, x: ov.Output, weight: ov.Output, bias: ov.Output | None = None) -> Any:
    before, after = [p[0] for p in op.padding], [p[1] for p in op.padding]
    if op.groups == 1:
        y = ops.convolution(x, weight, op.stride, before, after, op.dilation)
    else:
        y = ops.group_convolution(x, _grouped(e, weight, op.groups), op.stride, before, after, op.dilation)
    return _biased(e, y, bias)


@emitter(ConvolutionTransposed)
def convolution_transposed(
    e: Emission, op: ConvolutionTransposed, x: ov.Output, weight: ov.Output, bias: ov.Output | None = None
) -> Any:
    keywords = {"output_padding": list(op.output_padding)}
    if op.groups == 1:
        y = ops.convolution_backprop_data(x, weight, list(op.stride), None, op.padding, op.padding, op.dilation, **keywords)
    else:
        filters = _grouped(e, weight, op.groups)
        y = ops.group_convolution_backprop_data(x, filters, op.stride, None, op.padding, op.padding, op.dilation, **keywords)
    return _biased(e, y, bias)


def _grouped(e: Emission, weight: ov.Output, groups: int) -> Any:
    """(G * O, I, *kernel) as (G, O, I, *kernel)."""
    first, *rest = list(weight.get_shape())
    return ops.reshape(weight, e.ints([groups, first // groups, *rest]), False)


def _biased(e: Emission, y: ov.Node, bias: ov.Output | None) -> Any:
    if bias is None:
        return y
    spatial = y.output(0).get_partial_shape().rank.get_length() - 2
    return ops.add(y, ops.reshape(bias, e.ints([1, -1, *[1] * spatial]), False))
