"""What every layer of a program computes in, and why those that do not compute in eight bits do not."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.lower.editing import argument
from torchsmith.ops.quantize import FP8
from torchsmith.quantize.placement import name_of

# Ops that multiply matrices, by their names without namespace and overload.
_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_CONVOLUTIONS = {"convolution", "conv1d", "conv2d", "conv3d"} | _TRANSPOSED
_PRODUCTS = {"linear", "mm", "addmm", "matmul", "bmm", "baddbmm"}
_ATTENTION = "scaled_dot_product_attention"
_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_MATRICES = _CONVOLUTIONS | _PRODUCTS | _RECURRENT | {_ATTENTION}
# What gives numbers that eight bits stand for, by the beginnings of their names.
_MARKS = ("fake_quantize", "dequantize_per", "dequantize_affine", "quantize_op")
# What moves such numbers, or chooses among them.
_MOVING = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "expand", "contiguous"),
    *("clone", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "cat", "concat", "concatenate", "stack"),
    *("channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "upsample_nearest2d", "roll", "flip", "pad", "constant_pad_nd"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool2d", "relu", "dropout"),
}  # fmt: skip


@dataclass(frozen=True)
class LayerPrecision:
    """One node that multiplies matrices.

    name: its module's path and its own name. precision: "int8", "float8_e4m3fn", or the float that it computes in. reason: why
    that is a float; empty where it is none.
    """

    name: str
    precision: str
    reason: str


def layers_of(
    program: ExportedProgram, floats: Mapping[str, torch.dtype], in_torch: Mapping[str, str], reasons: Mapping[str, str]
) -> dict[str, LayerPrecision]:
    """The program's layers by the names of their nodes, in its order.

    The mappings are by the names of nodes too. floats: what float32 work becomes, of nodes in engines. in_torch: why nodes stay in
    PyTorch. reasons: why calibration left layers in floats; where it gives none, the program tells.
    """
    known = set(parameters_of(program))
    found = {}
    for node in program.graph.nodes:
        if _op(node) not in _MATRICES:
            continue
        own, marks = _dtype(node), [eight_bits(operand) for operand in _operands(node)]
        if node.name in in_torch:
            precision, reason = own, f"it stays in PyTorch: {in_torch[node.name]}"
        elif marks and marks[0] is not None and len(set(marks)) == 1:
            precision, reason = marks[0], ""
        else:
            wanted = node.meta.get("precision") or floats.get(node.name, own)
            precision = wanted if own == torch.float32 else own
            reason = reasons.get(node.name) or _reason(node, marks, known)
        found[node.name] = LayerPrecision(name_of(node), str(precision).removeprefix("torch."), reason)
    return found


def eight_bits(value: fx.Node) -> torch.dtype | None:
    """int8 or float8_e4m3fn, where that is what a value was quantized to; None where it was not, or to more than one of them."""
    if _op(value).startswith(_MARKS):
        return _quantized_to(value)
    if _op(value) not in _MOVING and value.target is not operator.getitem:
        return None
    sources = {eight_bits(source) for source in value.all_input_nodes if not isinstance(source.meta.get("val"), torch.SymInt)}
    return sources.pop() if len(sources) == 1 else None


def _quantized_to(node: fx.Node) -> torch.dtype:
    if _op(node) == "quantize_op":  # ModelOpt's
        return FP8 if argument(node, "exponent_bits") else torch.int8
    source = node.args[0]
    is_float = isinstance(source, fx.Node) and _dtype(source) == FP8
    return FP8 if is_float or _op(node) == "fake_quantize_float8" else torch.int8


def _operands(node: fx.Node) -> list[fx.Node]:
    """The matrices that a node multiplies; none of recurrent layers, which no engine computes in eight bits."""
    op = _op(node)
    first, count = (1, 2) if op in ("addmm", "baddbmm") else (0, 3 if op == _ATTENTION else 0 if op in _RECURRENT else 2)
    return [value for value in node.args[first : first + count] if isinstance(value, fx.Node)]


def _reason(node: fx.Node, marks: list[torch.dtype | None], known: set[str]) -> str:
    """Why a node is in floats that nobody gave a reason for. marks: what its operands are quantized to. known: constants."""
    op, operands = _op(node), _operands(node)
    if op in _RECURRENT:
        return "a recurrent layer; engines compute those in floats"
    if _dtype(node) == torch.float64:
        return "float64 is not quantized"
    if any(marks):
        return f"the model quantizes its {'input' if marks[0] else 'weight'} only"
    if op == _ATTENTION or not any(operand.name in known for operand in operands):
        return "it multiplies activations with each other"
    if op in _CONVOLUTIONS and operands[-1].name not in known:
        return "its weight is computed from the input"
    if op in _TRANSPOSED and argument(node, "groups") != 1:
        return "a transposed convolution in groups"
    return "the model does not quantize it"


def _op(node: fx.Node) -> str:
    """The name of a node's op, without namespace and overload; empty for what has none."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return "" if schema is None else str(schema.name.partition("::")[2])


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return first.dtype if isinstance(first, Tensor) else None
