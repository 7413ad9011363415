"""What does not depend on the inputs is computed now, and stands in the program as a constant."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.lower.aliases import is_returned, mutated
from torchsmith.lower.editing import Lowering, calls, lift, settled, substitute

aten = torch.ops.aten

# A result may take this much, or this many times what it came from; a larger one is cheaper to compute than to carry.
_ALLOWED_BYTES = 1 << 20
_ALLOWED_GROWTH = 4
# What may be held for a moment on the way to a small result.
_ALLOWED_WORK_BYTES = 64 << 20

_BROADCASTS = {aten.expand.default, aten.expand_as.default, aten.broadcast_to.default}
# Their pairs on weights are what engines turn into int8; the quantize stage reads them.
_QUANTIZATION = ("fake_quantize", "quantize", "dequantize")


def fold_constants(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """Random ops, ops of other libraries and what the user would get back as an output of their own are left."""
    if not how.config.fold_constants:
        return program
    tensors = parameters_of(program)
    origins: dict[fx.Node, frozenset[fx.Node]] = {}  # every constant node, and the parameters that it comes from
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in tensors:
            origins[node] = frozenset([node])
        elif node.op == "call_function" and _is_constant(node, origins, how):
            found = frozenset[fx.Node]().union(*(origins[n] for n in node.all_input_nodes))
            if _nbytes(node) <= max(_ALLOWED_WORK_BYTES, _ALLOWED_GROWTH * sum(map(_nbytes, found))):
                origins[node] = found
    values: dict[fx.Node, Any] = {node: tensors[node.name] for node in origins if node.op == "placeholder"}
    stays = {node for node in program.graph.nodes if node not in origins}
    for node in reversed(calls(program)):
        if node in stays or not any(user in stays for user in node.users):
            continue
        if _is_worth_it(node, origins[node]):
            substitute(node, lift(program, _evaluate(node, values), "c_folded"))
        else:
            stays.add(node)
    return settled(program)


def _is_constant(node: fx.Node, known: Mapping[fx.Node, Any], how: Lowering) -> bool:
    """Whether every call gives the same, and evaluating has no other effect."""
    if any(n not in known for n in node.all_input_nodes) or not _is_static(node):
        return False
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target.namespace not in ("aten", "prims") or how.keeps(node):
        return False
    name = node.target._overloadpacket.__name__
    random = torch.Tag.nondeterministic_seeded in node.target.tags
    return not (random or name.startswith(_QUANTIZATION) or node.target._schema.is_mutable or mutated(node))


def _is_static(node: fx.Node) -> bool:
    """Whether the node gives tensors whose sizes are all numbers."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(v, Tensor) and all(isinstance(size, int) for size in v.shape) for v in values)


def _nbytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return sum(v.numel() * v.element_size() for v in (value if isinstance(value, (tuple, list)) else (value,)))


def _is_worth_it(node: fx.Node, origins: frozenset[fx.Node]) -> bool:
    # a broadcast costs nothing where it stands, and its size where it is folded
    if node.target in _BROADCASTS or not isinstance(node.meta["val"], Tensor):
        return False
    # eager returns a tensor that the user may write to; a constant of ours they must not get hold of
    if is_returned(node):
        return False
    return _nbytes(node) <= max(_ALLOWED_BYTES, _ALLOWED_GROWTH * sum(map(_nbytes, origins)))


def _evaluate(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What the node gives, and every node on the way to it."""
    waiting = [node]
    while waiting:
        current = waiting[-1]
        if missing := [n for n in current.all_input_nodes if n not in values]:
            waiting.extend(missing)
            continue
        waiting.pop()
        if current not in values:
            args, kwargs = fx.node.map_arg((current.args, current.kwargs), values.__getitem__)
            with torch.no_grad():
                values[current] = current.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]
