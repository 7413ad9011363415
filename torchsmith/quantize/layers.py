"""What every layer of a program computes in, and why those that do not compute in eight bits do not."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.lower.editing import argument
from torchsmith.ops.quantize import FP8, LIMITS, OFFSET
from torchsmith.quantize.abilities import Product, never
from torchsmith.quantize.weighted import name_of, product_of

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
    program: ExportedProgram,
    floats: Mapping[str, torch.dtype],
    in_torch: Mapping[str, str],
    reasons: Mapping[str, str],
    in_floats: Callable[[Product], str] = never,
) -> dict[str, LayerPrecision]:
    """The program's layers by the names of their nodes, in its order.

    The mappings are by the names of nodes too. floats: what float32 work becomes, of nodes in engines. in_torch: why nodes stay in
    PyTorch. reasons: why calibration left layers in floats; where it gives none, the program tells. in_floats: of the engines'
    `Int8Abilities`.
    """
    known = parameters_of(program)
    found = {}
    for node in program.graph.nodes:
        if _op(node) not in _MATRICES:
            continue
        own, marks = _dtype(node), [eight_bits(operand, in_torch) for operand in _operands(node)]
        sums = _scales_what_is_summed(node)
        eight = marks[0] if len(set(marks)) == 1 and not sums else None
        lacks = in_floats(_product(node, known)) if eight == torch.int8 else ""
        if node.name in in_torch:
            precision, reason = own, f"it stays in PyTorch: {in_torch[node.name]}"
        elif eight is not None and not lacks:
            precision, reason = eight, ""
        else:
            wanted = node.meta.get("precision") or floats.get(node.name, own)
            precision = wanted if own == torch.float32 else own
            summed = "its weight has a scale for each number that is summed up, and not for each result" if sums else ""
            reason = reasons.get(node.name) or lacks or summed or _reason(node, marks, known, in_torch)
        found[node.name] = LayerPrecision(name_of(node), str(precision).removeprefix("torch."), reason)
    return found


def is_quantized(program: ExportedProgram) -> bool:
    """Whether anything in the program is rounded to few bits, by a calibration or as it was trained."""
    return any(_op(node).startswith(_MARKS) for node in program.graph.nodes)


def eight_bits(value: fx.Node, in_torch: Collection[str] = ()) -> torch.dtype | None:
    """int8 or float8_e4m3fn, where that is what a value was quantized to in an engine; None elsewhere.

    in_torch: names of nodes that stay in PyTorch.
    """
    if _op(value).startswith(_MARKS):
        return None if value.name in in_torch else _quantized_to(value)
    if _op(value) not in _MOVING and value.target is not operator.getitem:
        return None
    sources = [source for source in value.all_input_nodes if not isinstance(source.meta.get("val"), torch.SymInt)]
    found = {eight_bits(source, in_torch) for source in sources}
    return found.pop() if len(found) == 1 else None


def _quantized_to(node: fx.Node) -> torch.dtype | None:
    """None for other numbers of bits."""
    if _op(node) == "quantize_op":  # ModelOpt's
        return None if argument(node, "num_bits") != 8 else FP8 if argument(node, "exponent_bits") else torch.int8
    if _op(node) == "fake_quantize_float8":
        return FP8
    if _op(node).startswith("fake_quantize"):
        low, high = argument(node, "quant_min"), argument(node, "quant_max")
        return torch.int8 if any(least <= low < high <= most for least, most in (LIMITS[torch.int8], LIMITS[torch.uint8])) else None
    source = node.args[0]
    dtype = _dtype(source) if isinstance(source, fx.Node) else None
    return {FP8: FP8, torch.int8: torch.int8, torch.uint8: torch.int8}.get(dtype)  # type: ignore[arg-type]


def _product(node: fx.Node, known: Mapping[str, Tensor]) -> Product:
    """known: constants by name."""
    x, weight = (*_operands(node), None, None)[:2]
    moved = (
        x is not None and _has_zero_point(x, known, signed=False),
        weight is not None and _has_zero_point(weight, known, signed=True),
    )
    return product_of(node, *moved)


def _has_zero_point(value: fx.Node, known: Mapping[str, Tensor], signed: bool) -> bool:
    """Whether integers that a value stands for have one. signed: less the 128 that make unsigned ones signed."""
    if not _op(value).startswith(_MARKS):
        sources = [source for source in value.all_input_nodes if not isinstance(source.meta.get("val"), torch.SymInt)]
        return any(_has_zero_point(source, known, signed) for source in sources)
    assert isinstance(value.target, torch._ops.OpOverload), value
    name = next((given.name for given in value.target._schema.arguments if given.name.startswith("zero_point")), None)
    zero = None if name is None else argument(value, name)
    if isinstance(zero, fx.Node):
        zero = known.get(zero.name)
        if zero is None:
            return True  # of the input's choice
    return zero is not None and bool((torch.as_tensor(zero) != (OFFSET if signed and _is_unsigned(value) else 0)).any())


def _is_unsigned(node: fx.Node) -> bool:
    if _op(node).startswith("fake_quantize"):
        return bool(argument(node, "quant_max") > LIMITS[torch.int8][1])
    source = node.args[0]
    return isinstance(source, fx.Node) and _dtype(source) == torch.uint8


def _scales_what_is_summed(node: fx.Node) -> bool:
    """Whether the scales of a node's weight run along another dimension than the results'; no product of integers does that."""
    op, operands = _op(node), _operands(node)
    if len(operands) != 2 or "channel" not in _op(operands[1]):
        return False
    weight = operands[1]
    rank, axis = weight.meta["val"].dim(), argument(weight, "axis")
    results = 1 if op in _TRANSPOSED else 0 if op in _CONVOLUTIONS or op == "linear" else rank - 1
    return bool(axis % rank != results and weight.meta["val"].shape[axis] != 1)


def _operands(node: fx.Node) -> list[fx.Node]:
    """The matrices that a node multiplies; none of recurrent layers, which no engine computes in eight bits."""
    op = _op(node)
    first, count = (1, 2) if op in ("addmm", "baddbmm") else (0, 3 if op == _ATTENTION else 0 if op in _RECURRENT else 2)
    return [value for value in node.args[first : first + count] if isinstance(value, fx.Node)]


def _reason(node: fx.Node, marks: list[torch.dtype | None], known: Collection[str], in_torch: Collection[str]) -> str:
    """Why a node is in floats that nobody gave a reason for. marks: what its operands are quantized to. known: constants."""
    op, operands = _op(node), _operands(node)
    if op in _RECURRENT:
        return "a recurrent layer; engines compute those in floats"
    if _dtype(node) == torch.float64:
        return "float64 is not quantized"
    if any(operand.name in in_torch and _op(operand).startswith(_MARKS) for operand in operands):
        return "its quantize ops stay in PyTorch"
    if any(marks):
        return f"the model quantizes its {'input' if marks[0] else 'weight'} only"
    if any(_op(operand).startswith(_MARKS) for operand in operands):
        return "the model quantizes it to other numbers than those of eight bits"
    if op == _ATTENTION or not any(_is_constant(operand, known) for operand in operands):
        return "it multiplies activations with each other"
    if op in _CONVOLUTIONS and not _is_constant(operands[-1], known):
        return "its weight is computed from the input"
    if op in _TRANSPOSED and argument(node, "groups") != 1:
        return "a transposed convolution in groups"
    return "the model does not quantize it"


def _is_constant(value: fx.Node, known: Collection[str]) -> bool:
    """Whether a value is a constant, moved or not."""
    while _op(value) in _MOVING and len(value.all_input_nodes) == 1:
        (value,) = value.all_input_nodes
    return value.name in known


def _op(node: fx.Node) -> str:
    """The name of a node's op, without namespace and overload; empty for what has none."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    return "" if schema is None else str(schema.name.partition("::")[2])


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return first.dtype if isinstance(first, Tensor) else None
