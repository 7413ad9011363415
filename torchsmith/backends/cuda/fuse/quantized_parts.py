"""What is cut into parts that are quantized each by its own scale is quantized whole: query, key and value behind one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torchsmith.ir.dim import Dim, Shape, product, same
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.slice import Slice


def quantized_parts(graph: Graph) -> Graph:
    """Slices of a value along one dimension, all quantized to one dtype, become slices of what one `Quantize` gives."""
    users, outputs = graph.users(), set(graph.outputs)
    constants, made, dropped = dict(graph.constants), dict[Node, list[Node]](), set[Node]()
    for value in graph.values():
        parts = sorted(users[value], key=_start) if all(map(_is_slice, users[value])) else []
        after = [users[p.outputs[0]] for p in parts]
        if len(parts) < 2 or value in outputs or not _tile(parts, value) or any(p.outputs[0] in outputs for p in parts):
            continue
        pairs = [found[0] for found in after if len(found) == 1 and quantizes_whole(found[0], graph)]
        if len(pairs) < len(parts) or len({n.op for n in pairs}) > 1:
            continue
        dim: int = parts[0].op.dim  # type: ignore[attr-defined]
        scales = torch.cat([constants[q.inputs[1]].reshape(1).expand(_length(p)) for p, q in zip(parts, pairs, strict=True)])
        scale = Value(f"{value.name}.scales", TensorType(tuple(scales.shape), scales.dtype))
        constants[scale] = scales.contiguous()
        op = replace(pairs[0].op, axis=dim)  # type: ignore[call-arg]
        whole = Value(f"{value.name}.quantized", value.type.with_dtype(pairs[0].outputs[0].type.dtype))
        new = [Node(op, (value, scale), (whole,), pairs[0].origin)]
        new += [Node(p.op, (whole,), q.outputs, q.origin) for p, q in zip(parts, pairs, strict=True)]
        dropped.update((*parts, *pairs))
        made[min(parts, key=graph.nodes.index)] = new
    nodes = [m for n in graph.nodes for m in (made.get(n) or ([] if n in dropped else [n]))]
    wanted = {*graph.outputs, *(v for n in nodes for v in n.inputs)}
    return replace(graph, nodes=tuple(nodes), constants={v: t for v, t in constants.items() if v in wanted})


def _is_slice(node: Node) -> bool:
    op = node.op
    return isinstance(op, Slice) and op.step == 1 and isinstance(op.start, int) and isinstance(op.end, int)


def _start(node: Node) -> int:
    start: int = node.op.start if _is_slice(node) else 0  # type: ignore[attr-defined]
    return start


def _length(node: Node) -> int:
    length: int = node.op.end - node.op.start  # type: ignore[attr-defined]
    return length


def _tile(parts: Sequence[Node], value: Value) -> bool:
    """Whether each part begins where the last one ends, and they cover all of the dimension."""
    dims = {p.op.dim for p in parts}  # type: ignore[attr-defined]
    ends = [0, *(p.op.end for p in parts)]  # type: ignore[attr-defined]
    return len(dims) == 1 and ends[:-1] == [_start(p) for p in parts] and same(value.type.shape[dims.pop()], ends[-1])


def quantizes_whole(node: Node, graph: Graph) -> bool:
    """Whether a node quantizes all of a value by one scale, without a zero point."""
    if type(node.op).__name__ != "Quantize" or len(node.inputs) != 2:
        return False
    return node.op.axis is None and node.inputs[1] in graph.constants  # type: ignore[attr-defined]


def before_move(move: Node, axis: int, scales: Tensor) -> tuple[int, Tensor] | None:
    """The dimension and scales of what is moved, that are `axis` and `scales` of the result. None where there are none."""
    kind, given, wanted = type(move.op).__name__, move.inputs[0].type.shape, move.outputs[0].type.shape
    if kind == "Permute":
        return move.op.dims[axis], scales  # type: ignore[attr-defined]
    if kind != "Reshape":
        return None
    outer, size = product(wanted[:axis]), wanted[axis]
    for dim in range(len(given)):
        if not same(product(given[:dim]), outer):
            continue
        inner = _inner(given[dim], wanted, axis)
        if inner is not None and isinstance(size, int):
            return dim, scales.repeat_interleave(inner)
    return None


def _inner(size: Dim, wanted: Shape, axis: int) -> int | None:
    """Elements of a dimension of that size for each of dimension `axis`, which it becomes with others after it."""
    count = 1
    for end in range(axis + 1, len(wanted) + 1):
        if same(wanted[axis] * count, size):
            return count
        step = wanted[end] if end < len(wanted) else None
        if not isinstance(step, int):
            return None
        count *= step
    return None
