"""Convolutions. A kernel of one dimension gets a second one of size 1: TensorRT's have two or three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.library import said
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Shape
from torchsmith.ops._spatial import Ints
from torchsmith.ops.convolution import Convolution, ConvolutionTransposed
from torchsmith.ops.quantize import Dequantize


@emitter(Convolution)
def convolution(e: Emission, op: Convolution, x: Any, weight: Any, bias: Any = None) -> Any:
    out = e.node.outputs[0].type
    kernel = _ints(e.node.inputs[1].type.shape[2:])
    own = _own(e, 1, weight, out.dtype), _own(e, 2, bias, out.dtype)
    layer = _added(e, e.network.add_convolution_nd, x, *own, kernel)
    layer.stride_nd, layer.dilation_nd = _planar(op.stride, 1), _planar(op.dilation, 1)
    layer.pre_padding, layer.post_padding = (_planar([pair[side] for pair in op.padding], 0) for side in (0, 1))
    layer.num_groups = op.groups
    y = e.layer(layer)
    return e.shaped(y, out.shape) if len(kernel) == 1 else y


@emitter(ConvolutionTransposed)
def convolution_transposed(e: Emission, op: ConvolutionTransposed, x: Any, weight: Any, bias: Any = None) -> Any:
    out = e.node.outputs[0].type
    # TensorRT-RTX 1.7 has no kernel for transposed convolutions of bfloat16
    dtype = torch.float32 if out.dtype == torch.bfloat16 else out.dtype
    kernel = _ints(e.node.inputs[1].type.shape[2:])
    after = [p - extra for p, extra in zip(op.padding, op.output_padding, strict=True)]
    short = any(p < 0 for p in after)  # then rows of zeros follow the last
    if any(d > 1 for d in op.dilation):
        own, kernel = _dilated(e, e.to(weight, dtype), op.dilation, dtype)
    else:
        own = _own(e, 1, weight, dtype)
    # nor does it build one whose bias is both an input and cast
    apart = bias is not None and (short or e.known(2) is None)
    layer = _added(e, e.network.add_deconvolution_nd, e.to(x, dtype), own, None if apart else _own(e, 2, bias, dtype), kernel)
    layer.stride_nd = _planar(op.stride, 1)
    layer.pre_padding, layer.post_padding = _planar(op.padding, 0), _planar([max(p, 0) for p in after], 0)
    layer.num_groups = op.groups
    y = e.layer(layer)
    if short:
        y = e.sliced(y, (0,) * len(y.shape), _planar_shape(out.shape), mode="FILL", fill=e.number(0, dtype))
    if apart:
        y = e.binary("SUM", y, e.reshape_to(e.to(bias, dtype), (1, -1, *[1] * (len(y.shape) - 2))))
    return e.to(e.shaped(y, out.shape) if len(kernel) == 1 else y, out.dtype)


def _own(e: Emission, number: int, given: Any, dtype: torch.dtype) -> Any:
    """The node's input of that number: where it is a constant of the graph, that, to be weights of the layer's own."""
    if given is None:
        return None
    known = e.known(number)
    return e.to(given, dtype) if known is None else known.to(dtype)


def _added(e: Emission, add: Any, x: Any, weight: Any, bias: Any, kernel: Ints) -> Any:
    """The layer. Weights that are not its own are inputs, as those of int8 layers are."""
    if len(kernel) == 1:
        x = e.shaped(x, _planar_shape(e.node.inputs[0].type.shape))
        weight = weight if isinstance(weight, Tensor) else _planar_weight(e, weight)
    owned = (e.weights(given if isinstance(given, Tensor) else None) for given in (weight, bias))
    layer = add(x, e.node.outputs[0].type.shape[1], _planar(kernel, 1), *owned)
    if layer is None:
        raise Unsupported(f"TensorRT does not take {e.node.op}: {said()}")
    for number, given in enumerate((weight, bias), 1):
        if given is not None and not isinstance(given, Tensor):
            layer.set_input(number, given)
    return layer


def _planar_weight(e: Emission, weight: Any) -> Any:
    """(K, C, 1, k). Integers that are known are dequantized in that shape: int8 layers want nothing in between."""
    value = e.node.inputs[1]
    maker = next((node for node in e.graph.nodes if value in node.outputs), None)
    known = e.graph.constants.get(maker.inputs[0]) if maker is not None else None
    shape = _planar_shape(tuple(weight.shape))
    if maker is None or known is None or not isinstance(maker.op, Dequantize) or known.dtype != torch.int8 or len(maker.inputs) > 2:
        return e.reshape_to(weight, shape)
    layer = e.network.add_dequantize(e.constant(known.reshape(shape)), e.tensors[maker.inputs[1]], weight.dtype)
    if layer is not None and maker.op.axis is not None:
        layer.axis = maker.op.axis
    return e.layer(layer)


def _dilated(e: Emission, weight: Any, dilation: Ints, dtype: torch.dtype) -> tuple[Any, Ints]:
    """The kernel with zeros between its elements: TensorRT-RTX has no transposed convolution both dilated and strided."""
    channels, kernel = tuple(weight.shape)[:2], tuple(weight.shape)[2:]
    zero = e.number(0, dtype)
    for axis, d in enumerate(dilation, 2):
        shape = tuple(weight.shape)
        apart = e.reshape_to(weight, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
        filled = e.sliced(apart, (0,) * (len(shape) + 1), (*shape[: axis + 1], d, *shape[axis + 1 :]), mode="FILL", fill=zero)
        weight = e.reshape_to(filled, (*shape[:axis], shape[axis] * d, *shape[axis + 1 :]))
    size = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    return e.sliced(weight, (0,) * (2 + len(size)), (*channels, *size)), size


def _ints(sizes: Shape) -> Ints:
    return tuple(int(size) for size in sizes)


def _planar(numbers: Sequence[int], first: int) -> Ints:
    return (first, *numbers) if len(numbers) == 1 else tuple(numbers)


def _planar_shape(shape: Shape) -> Shape:
    return (*shape[:2], 1, *shape[2:]) if len(shape) == 3 else shape
