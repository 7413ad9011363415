"""Nodes of a program that multiply with constant weights, and kinds of the nodes between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.capture.source import layer
from torchsmith.convert import parameters_of
from torchsmith.lower.editing import argument
from torchsmith.quantize.abilities import Product

aten = torch.ops.aten

CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
PRODUCTS = {aten.mm.default, aten.matmul.default}
# Rounding before or after these is the same.
COMMUTING = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.adaptive_max_pool2d.default,
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.unsqueeze.default, aten.permute.default, aten.transpose.int, aten.t.default, aten.slice.Tensor,
    aten.select.int, aten.contiguous.default, aten.clone.default, aten.channel_shuffle.default, aten.pixel_shuffle.default,
    aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default,
}  # fmt: skip
POINTWISE = {
    aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.silu.default, aten.hardswish.default, aten.gelu.default,
    aten.leaky_relu.default, aten.clamp.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.mish.default,
}  # fmt: skip
POOLING = {aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool1d.default, aten.avg_pool2d.default}


@dataclass(frozen=True)
class Layer:
    """A node that computes in eight bits. name: its module's path and its own name.

    x, weight: its inputs that are quantized. x is the second one where it multiplies from the left. axis: the weight's dimension
    of output channels. dtype: what both are quantized to, int8 or float8_e4m3fn.
    """

    node: fx.Node
    name: str
    x: fx.Node
    weight: fx.Node
    axis: int
    dtype: torch.dtype = torch.int8

    @property
    def terms(self) -> int:
        """How many products are summed up for each number that it gives."""
        weight = self.weight.meta["val"]
        return int(weight.numel() // weight.shape[self.axis])


def weighted(program: ExportedProgram) -> dict[fx.Node, Layer]:
    """Every node that multiplies with a constant weight, whether int8 goes there or not."""
    weights = weights_of(program)
    return {node: made for node in program.graph.nodes if (made := layer_of(node, weights)) is not None}


def weights_of(program: ExportedProgram) -> set[str]:
    return {name for name, tensor in parameters_of(program).items() if tensor.is_floating_point()}


def name_of(node: fx.Node) -> str:
    """A node's name for people: its module's path, where known, and its own name, which is unique."""
    path = layer(node)
    return f"{path}/{node.name}" if path else node.name


def layer_of(node: fx.Node, weights: set[str]) -> Layer | None:
    """The node as a layer, where it is one whose weight is constant."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    x, weight, axis = node.args[0] if node.args else None, node.args[1] if len(node.args) > 1 else None, 0
    if node.target is aten.addmm.default:
        x, weight, axis = node.args[1], node.args[2], 1
    elif node.target in PRODUCTS:
        axis = 1
    elif node.target in _TRANSPOSED or (node.target is aten.convolution.default and argument(node, "transposed")):
        if argument(node, "groups") != 1:
            return None
        axis = 1
    elif node.target not in {*CONVOLUTIONS, aten.convolution.default, aten.linear.default}:
        return None
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.name not in weights or x.name in weights:
        return None
    if weight.meta["val"].dim() < 2 or not x.meta["val"].is_floating_point() or weight.meta["val"].dtype == torch.float64:
        return None
    if node.target in PRODUCTS and weight.meta["val"].dim() != 2:
        return None
    return Layer(node, name_of(node), x, weight, axis)


def product_of(node: fx.Node, input_moved: bool = False, weight_moved: bool = False) -> Product:
    """What a backend is told of a node that multiplies matrices. The flags: see `Product`."""
    if node.target not in {*CONVOLUTIONS, *_TRANSPOSED, aten.convolution.default}:
        return Product(input_moved=input_moved, weight_moved=weight_moved)
    transposed = node.target in _TRANSPOSED or (node.target is aten.convolution.default and argument(node, "transposed"))
    weight: Tensor = node.args[1].meta["val"]  # type: ignore[union-attr]
    dims, groups = weight.dim() - 2, argument(node, "groups")
    filters, channels = weight.shape[0], weight.shape[1] * groups
    if transposed:
        filters, channels = channels, filters
    stride, dilation = (each(argument(node, name), dims) for name in ("stride", "dilation"))
    return Product(dims, transposed, groups, channels, filters, stride, dilation, input_moved, weight_moved)


def each(given: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """An argument for each dimension: one number may stand for all."""
    sizes = (given,) if isinstance(given, int) else tuple(given)
    return sizes * dims if len(sizes) == 1 else sizes
