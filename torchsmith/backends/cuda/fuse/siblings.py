"""Linear layers of one input (query, key and value) are one product with their weights one under the other, then sliced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torchsmith.backends.cuda.fuse.epilogue import alike
from torchsmith.backends.cuda.fuse.fused import in_order
from torchsmith.backends.cuda.fuse.quantized_parts import quantizes_whole
from torchsmith.backends.cuda.layout import VIEWS, contiguous, reshaped_strides
from torchsmith.backends.cuda.program import is_pointwise
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.linear import Linear
from torchsmith.ops.slice import Slice


def siblings(graph: Graph) -> Graph:
    users, outputs = graph.users(), set(graph.outputs)
    pairs = {n.outputs[0]: n for n in graph.nodes if _is_of_constants(n, graph)}
    groups: dict[tuple[Value, torch.dtype | None, Op | None], list[Node]] = {}
    for node in graph.nodes:
        rounded = len(node.inputs) > 1 and node.inputs[1] in pairs
        if type(node.op).__name__ == "Linear" and all(v in graph.constants for v in node.inputs[1 + rounded :]):
            (y,) = node.outputs
            known = rounded or node.inputs[1] in graph.constants
            # what quantizes all of them will be one: see `quantized_parts.py`
            after = users[y][0].op if len(users[y]) == 1 and quantizes_whole(users[y][0], graph) else None
            if known and y not in outputs and (after or all(_suits(user, y) for user in users[y])):
                kind = pairs[node.inputs[1]].inputs[0].type.dtype if rounded else None
                groups.setdefault((node.inputs[0], kind, after), []).append(node)
    constants, nodes = dict(graph.constants), list(graph.nodes)
    for members in groups.values():
        if len(members) > 1:
            made = _joined(members, constants, pairs)
            nodes = [n for n in nodes if n not in members] + made
    wanted = {*graph.outputs, *(v for n in nodes for v in n.inputs)}
    extended = replace(graph, constants={v: t for v, t in constants.items() if v in wanted})
    return replace(extended, nodes=tuple(in_order(extended, nodes)))


def _suits(user: Node, value: Value) -> bool:
    """Whether a user can do with a slice: the product could not have run it in its epilogue, and no view of it becomes a copy."""
    shape = value.type.shape
    if type(user.op).__name__ == "Reshape":
        apart = contiguous((*shape[:-1], 2 * shape[-1]))
        return reshaped_strides(shape, apart, user.outputs[0].type.shape) is not None
    return type(user.op).__name__ in VIEWS or not (is_pointwise(user) and alike(user.outputs[0], value))


def _is_of_constants(node: Node, graph: Graph) -> bool:
    """Whether a node dequantizes a constant weight, row by row or by one scale."""
    if type(node.op).__name__ != "Dequantize" or node.op.axis not in (0, None):  # type: ignore[attr-defined]
        return False
    return len(node.inputs) == 2 and all(v in graph.constants for v in node.inputs)


def _joined(members: Sequence[Node], constants: dict[Value, Tensor], pairs: Mapping[Value, Node]) -> list[Node]:
    """One product and a slice for each of its parts. Adds the joined weights to the constants."""
    first, x = members[0], members[0].inputs[0]
    name = f"{first.outputs[0].name}_joined"
    made, inputs = list[Node](), [x]
    if first.inputs[1] in pairs:
        given = [pairs[n.inputs[1]] for n in members]
        rows = [constants[n.inputs[0]] for n in given]
        scales = [constants[n.inputs[1]].expand(len(q)) for n, q in zip(given, rows, strict=True)]
        parts = [_constant(f"{name}_{i}", torch.cat(joined), constants) for i, joined in enumerate((rows, scales))]
        inputs.append(Value(f"{name}_weight", given[0].outputs[0].type.with_shape(*parts[0].type.shape)))
        made.append(Node(replace(given[0].op, axis=0), tuple(parts), (inputs[1],), first.origin))  # type: ignore[call-arg]
    else:
        inputs.append(_constant(f"{name}_weight", torch.cat([constants[n.inputs[1]] for n in members]), constants))
    if any(len(n.inputs) > 2 for n in members):
        dtype = next(n.inputs[2].type.dtype for n in members if len(n.inputs) > 2)
        biases = [constants[n.inputs[2]] if len(n.inputs) > 2 else _no_bias(n.inputs[1], dtype) for n in members]
        inputs.append(_constant(f"{name}_bias", torch.cat(biases), constants))
    whole = Value(name, Linear().infer(*(v.type for v in inputs)))
    made.append(Node(Linear(), tuple(inputs), (whole,), first.origin))
    last, start = whole.type.rank - 1, 0
    for node in members:
        end = start + node.outputs[0].type.shape[-1]
        made.append(Node(Slice(last, start, end), (whole,), node.outputs, node.origin))
        start = end
    return made


def _no_bias(weight: Value, dtype: torch.dtype) -> Tensor:
    return torch.zeros(weight.type.shape[0], dtype=dtype)


def _constant(name: str, tensor: Tensor, constants: dict[Value, Tensor]) -> Value:
    value = Value(name, TensorType(tuple(tensor.shape), tensor.dtype))
    constants[value] = tensor
    return value
