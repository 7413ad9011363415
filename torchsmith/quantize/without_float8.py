"""fp8 is taken out of a program again, for engines that do not compute in it: what was rounded for it stays a float."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.convert import convert, parameters_of
from torchsmith.ir.interpret import interpret
from torchsmith.lower.editing import argument, call, calls, copied, lift, settled, substitute
from torchsmith.ops.quantize import FP8


def has_float8(program: ExportedProgram) -> bool:
    return any(_is_whole(node) or _is_half(node) for node in calls(program))


def without_float8(program: ExportedProgram) -> ExportedProgram:
    """The same program with floats in the place of fp8. Weights keep the values that they were rounded to; activations are not
    rounded. Raises Unsupported for a weight's scales that engines do not have.
    """
    program = copied(program)
    tensors = parameters_of(program)
    for node in calls(program):
        source = _source(node)
        if source is None:
            continue
        if source.name in tensors:
            substitute(node, lift(program, _dequantized(node, program), "c_weight"))
        else:
            wanted = node.meta["val"].dtype
            same = source.meta["val"].dtype == wanted
            substitute(node, source if same else call(node, torch.ops.aten._to_copy.default, source, dtype=wanted))
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()
    return settled(program)


def _is_whole(node: fx.Node) -> bool:
    """Whether the node rounds to fp8 and back."""
    name = getattr(getattr(node.target, "_schema", None), "name", "")
    return name == "torchsmith::fake_quantize_float8" or (
        name == "tensorrt::quantize_op" and argument(node, "exponent_bits") == 4 and argument(node, "num_bits") == 8
    )


def _is_half(node: fx.Node) -> bool:
    """Whether the node makes floats of fp8."""
    name = getattr(getattr(node.target, "_schema", None), "name", "").partition("::")[2]
    given = node.args[0] if node.args else None
    return name.startswith("dequantize_") and isinstance(given, fx.Node) and given.meta["val"].dtype == FP8


def _source(node: fx.Node) -> fx.Node | None:
    """What the node rounds, or what the fp8 that it takes was; None where it has nothing to do with fp8."""
    if not _is_whole(node) and not _is_half(node):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    name = getattr(getattr(source.target, "_schema", None), "name", "").partition("::")[2]
    if _is_half(node) and name.startswith("quantize_"):
        source = source.args[0]
        assert isinstance(source, fx.Node)
    return source


def _dequantized(node: fx.Node, program: ExportedProgram) -> Tensor:
    """What the node gives of constants."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    nodes = [source, node] if source.op == "call_function" else [node]
    (value,) = interpret(convert(program, [], nodes, [node]), [])
    return value
