"""What a node has to move and to multiply, whatever runs it: the least bytes and the floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping

from torchsmith.backends.cuda.fuse.fused import flattened
from torchsmith.ir.dim import bind, product
from torchsmith.ir.graph import Node, Value


def bytes_of(node: Node, at: Mapping[str, int]) -> int:
    """Bytes of the node's inputs and outputs, each once."""
    values = dict.fromkeys((*node.inputs, *node.outputs))
    return sum(_numel(v, at) * v.type.dtype.itemsize for v in values)


def flops_of(node: Node, at: Mapping[str, int]) -> int:
    """Multiplications and additions of its products, two for each pair; of nodes without any, one for each element."""
    products = sum(_products(n, at) for n in flattened([node]))
    return products or sum(_numel(v, at) for v in node.outputs)


def _products(node: Node, at: Mapping[str, int]) -> int:
    kind, out = type(node.op).__name__, node.outputs[0]
    if kind == "Convolution":
        weight = node.inputs[1]
        return 2 * _numel(out, at) * _numel(weight, at) // int(bind(weight.type.shape[0], at))
    if kind == "ConvolutionTransposed":
        weight = node.inputs[1]
        return 2 * _numel(node.inputs[0], at) * _numel(weight, at) // int(bind(weight.type.shape[0], at))
    if kind in ("Linear", "MatMul"):
        return 2 * _numel(out, at) * int(bind(node.inputs[0].type.shape[-1], at))
    if kind == "Attention":
        q, k, v = node.inputs[:3]
        scores = _numel(q, at) // int(bind(q.type.shape[-1], at)) * int(bind(k.type.shape[-2], at))
        return 2 * scores * (int(bind(q.type.shape[-1], at)) + int(bind(v.type.shape[-1], at)))
    return 0


def _numel(value: Value, at: Mapping[str, int]) -> int:
    return int(bind(product(value.type.shape), at))
