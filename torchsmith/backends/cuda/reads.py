"""Ops that only say where an element comes from, as loads at the start of a pointwise kernel: concatenation, padding, gathers.

Each writes the loads of one such node into a `HookWriter`; their operands are the kernel's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product as combinations
from typing import Any

import torch

from torchsmith.backends.cuda.emission import TRITON_TYPES
from torchsmith.backends.cuda.expressions import literal, no_integer, python_type, register_type
from torchsmith.backends.cuda.program import READS, HookWriter, Space
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, same, simplify, total
from torchsmith.ir.graph import Node, Value


def is_read(node: Node) -> bool:
    """Whether a pointwise kernel can start with the node."""
    if type(node.op).__name__ not in READS or any(v.type.dtype not in TRITON_TYPES for v in (*node.inputs, *node.outputs)):
        return False
    return not (type(node.op).__name__ == "Resize" and _resize_refusal(node))


def read(writer: HookWriter, node: Node, space: Space, mask: str) -> None:
    """Load the node's output at the space's coordinates. Raises Unsupported where sizes do not allow it."""
    if not all(map(same, space.shape[len(space.shape) - node.outputs[0].type.rank :], node.outputs[0].type.shape)):
        raise Unsupported(f"{node.op} is broadcast to {space.shape}")
    writer.names[node.outputs[0]] = _READERS[type(node.op).__name__](writer, node, space, mask)


def _fetch(writer: HookWriter, value: Value, place: str, mask: str, other: str = "0") -> str:
    tensor = writer.constants(value)
    if tensor is not None and tensor.numel() == 1:
        return writer.add(f"tl.where({mask}, {literal(tensor.item())}, {other})")
    register = python_type(register_type(value.type.dtype))
    other = no_integer(other, register)
    if not re.search("[a-z]", place):
        place = f"({mask}).to(tl.int32) * 0"  # one element, wherever it is wanted
    if other != "0" and value.type.dtype in (torch.int8, torch.uint8, torch.int16):  # see kernels/fill.py
        found = writer.add(f"tl.load({writer.operand(value)} + {place}, mask={mask}, other=0).to(tl.{register})")
        return writer.add(f"tl.where({mask}, {found}, {other})")
    return writer.add(f"tl.load({writer.operand(value)} + {place}, mask={mask}, other={other}).to(tl.{register})")


def _rest(writer: HookWriter, value: Value, space: Space, *without: int) -> str:
    """The element's place in an operand of the space's rank, but for some dimensions."""
    view = writer.placed[value]
    strides = tuple(0 if d in without else s for d, s in enumerate(view.strides))
    shape = tuple(space.shape[d] if not same(n, 1) else n for d, n in enumerate(value.type.shape))
    return writer.address(shape, strides, space)


def _step(writer: HookWriter, coordinate: str, stride: Dim) -> str:
    return coordinate if same(stride, 1) else f"{coordinate} * {writer.size(stride)}"


def _concat(writer: HookWriter, node: Node, space: Space, mask: str) -> str:
    dim: int = node.op.dim  # type: ignore[attr-defined]
    c = writer.add(writer.coordinate(dim, space))
    ends = [total([v.type.shape[dim] for v in node.inputs[: i + 1]]) for i in range(len(node.inputs))]
    result = ""
    for value, end in zip(node.inputs, ends, strict=True):
        start = simplify(end - value.type.shape[dim])
        inside = [f"({c} >= {writer.size(start)})"] if value is not node.inputs[0] else []
        inside += [f"({c} < {writer.size(end)})"] if value is not node.inputs[-1] else []
        local = f"({c} - {writer.size(start)})" if value is not node.inputs[0] else c
        place = f"{_rest(writer, value, space, dim)} + {_step(writer, local, writer.placed[value].strides[dim])}"
        part = _fetch(writer, value, place, " & ".join([mask, *inside]))
        result = part if not result else writer.add(f"tl.where({c} < {writer.size(start)}, {result}, {part})")
    return result


def _pad(writer: HookWriter, node: Node, space: Space, mask: str) -> str:
    op: Any = node.op
    (x,) = node.inputs
    dims = [d for d in range(x.type.rank) if not (same(op.before[d], 0) and same(op.after[d], 0))]
    place, inside = _rest(writer, x, space, *dims), [mask]
    for d in dims:
        size = writer.size(x.type.shape[d])
        c = writer.add(f"{writer.coordinate(d, space)} - {writer.size(op.before[d])}")
        if op.mode == "constant":
            inside.append(f"({c} >= 0) & ({c} < {size})")
        elif op.mode == "reflect":
            c = writer.add(f"({size} - 1) - tl.abs(({size} - 1) - tl.abs({c}))")
        elif op.mode == "replicate":
            c = writer.add(f"tl.minimum(tl.maximum({c}, 0), {size} - 1)")
        else:
            c = writer.add(f"({c} + {size}) % {size}")
        place += f" + {_step(writer, c, writer.placed[x].strides[d])}"
    value = float(op.value) if x.type.dtype.is_floating_point else int(op.value)
    other = literal(value) if op.mode == "constant" else "0"
    return _fetch(writer, x, place, " & ".join(inside), other)


def _tile(writer: HookWriter, node: Node, space: Space, mask: str) -> str:
    (x,) = node.inputs
    repeats = node.op.repeats  # type: ignore[attr-defined]
    dims = [d for d in range(x.type.rank) if not same(repeats[d], 1) and not same(x.type.shape[d], 1)]
    place = _rest(writer, x, space, *dims)
    for d in dims:
        c = f"({writer.coordinate(d, space)} % {writer.size(x.type.shape[d])})"
        place += f" + {_step(writer, c, writer.placed[x].strides[d])}"
    return _fetch(writer, x, place, mask)


def _gather(writer: HookWriter, node: Node, space: Space, mask: str) -> str:
    """Rows of x. An index outside gives zeros, rather than what lies beside the table."""
    x, index = node.inputs
    dim: int = node.op.dim  # type: ignore[attr-defined]
    added, view, shape = index.type.rank, writer.placed[index], node.outputs[0].type.shape
    after = x.type.rank - dim - 1
    at = writer.address((*index.type.shape, *shape[len(shape) - after :]), (*view.strides, *[0] * after), space)
    row = writer.add(f"{_fetch(writer, index, at, mask)}.to(tl.int32)")
    strides = writer.placed[x].strides
    place = writer.address(shape, (*strides[:dim], *[0] * added, *strides[dim + 1 :]), space)
    inside = f"{mask} & ({row} >= 0) & ({row} < {writer.size(x.type.shape[dim])})"
    return _fetch(writer, x, f"{_step(writer, row, strides[dim])} + {place}", inside)


def _gather_elements(writer: HookWriter, node: Node, space: Space, mask: str) -> str:
    x, index = node.inputs
    dim: int = node.op.dim  # type: ignore[attr-defined]
    row = writer.add(f"{_fetch(writer, index, writer.offset(index, space), mask)}.to(tl.int32)")
    inside = f"{mask} & ({row} >= 0) & ({row} < {writer.size(x.type.shape[dim])})"
    place = f"{_step(writer, row, writer.placed[x].strides[dim])} + {_rest(writer, x, space, dim)}"
    return _fetch(writer, x, place, inside)


def _resize_refusal(node: Node) -> str | None:
    op: Any = node.op
    sizes = (*node.inputs[0].type.shape[2:], *op.size)
    if op.mode not in ("nearest", "nearest-exact", "linear"):
        return f"a resize by {op.mode!r}"
    if node.inputs[0].type.dtype == torch.float64 or not all(isinstance(n, int) for n in sizes):
        return f"a resize of {node.inputs[0].type} to {op.size}"
    return None


def _resize(writer: HookWriter, node: Node, space: Space, mask: str) -> str:
    op: Any = node.op
    (x,) = node.inputs
    if why := _resize_refusal(node):
        raise Unsupported(why)
    spatial = range(2, x.type.rank)
    base = _rest(writer, x, space, *spatial)
    choices: list[list[tuple[str, str]]] = []  # for each dimension the places to load from, and their weights
    for d in spatial:
        size, wanted = int(x.type.shape[d]), int(op.size[d - 2])
        stride = writer.placed[x].strides[d]
        c = writer.coordinate(d, space)
        scale = size / wanted if op.scales is None else 1.0 / op.scales[d - 2]
        if op.mode != "linear":
            if wanted % size == 0 and scale == size / wanted:
                i = writer.add(f"{c} // {wanted // size}")
            else:
                shift = " + 0.5" if op.mode == "nearest-exact" else ""
                i = writer.add(f"tl.minimum((({c}).to(tl.float32){shift}) * {literal(scale)}, {size - 1}.0).to(tl.int32)")
            choices.append([(_step(writer, i, stride), "")])
            continue
        if op.align_corners:
            scale = (size - 1) / (wanted - 1) if wanted > 1 else 0.0
            at = writer.add(f"({c}).to(tl.float32) * {literal(scale)}")
        else:
            at = writer.add(f"tl.maximum((({c}).to(tl.float32) + 0.5) * {literal(scale)} - 0.5, 0.0)")
        low = writer.add(f"tl.minimum({at}.to(tl.int32), {size - 1})")
        high = writer.add(f"tl.minimum({low} + 1, {size - 1})")
        weight = writer.add(f"tl.minimum({at} - {low}.to(tl.float32), 1.0)")
        choices.append([(_step(writer, low, stride), f"(1.0 - {weight})"), (_step(writer, high, stride), weight)])
    result = ""
    for corner in combinations(*choices):
        part = _fetch(writer, x, " + ".join([base, *(place for place, _ in corner)]), mask)
        term = " * ".join([part, *(w for _, w in corner if w)])
        result = writer.add(f"{result} + {term}" if result else term)
    return result


_READERS: dict[str, Callable[[HookWriter, Node, Space, str], str]] = {
    "Concat": _concat,
    "Pad": _pad,
    "Tile": _tile,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Resize": _resize,
}
