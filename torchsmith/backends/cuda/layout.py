"""Where every value's elements are: strides over a root's storage.

Convolutional networks run channels-last; whatever only moves elements about (reshapes, permutations, slices) is a view of
what it moves wherever strides can say it, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from torchsmith.ir.dim import Dim, Shape, bind, product, same, simplify, total
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType


@dataclass(frozen=True)
class View:
    """A value's elements: element (i, j, …) is at `offset + i * strides[0] + j * strides[1] + …` of the root's storage."""

    root: Value
    strides: Shape
    offset: Dim = 0


Placed = Mapping[Value, View]


def contiguous(shape: Shape) -> Shape:
    strides: list[Dim] = []
    for axis in range(len(shape)):
        strides.append(product(shape[axis + 1 :]))
    return tuple(strides)


def channels_last(shape: Shape) -> Shape:
    """Strides of (N, C, *spatial) with the channels innermost."""
    inner = contiguous((shape[0], *shape[2:], shape[1]))
    return (inner[0], inner[-1], *inner[1:-1])


def order_of(type: TensorType, strides: Shape) -> tuple[int, ...] | None:
    """The dimensions from outermost to innermost if the strides are dense, else None. Dimensions of size 1 come first."""
    real = [d for d in range(type.rank) if not same(type.shape[d], 1)]
    ones = [d for d in range(type.rank) if same(type.shape[d], 1)]
    found: list[int] = []
    expected: Dim = 1
    while real:
        match = next((d for d in real if same(strides[d], expected)), None)
        if match is None:
            return None
        found.append(match)
        real.remove(match)
        expected = product((expected, type.shape[match]))
    return (*ones, *reversed(found))


def memory_order(shape: Shape, strides: Shape) -> tuple[int, ...]:
    """The dimensions from the widest stride to the narrowest, gaps or not. Those of size 1 come first, then those of stride 0."""
    real = [d for d in range(len(shape)) if not same(shape[d], 1) and not same(strides[d], 0)]
    real.sort(key=lambda d: (-_typical(strides[d]), -_typical(shape[d])))
    ones = [d for d in range(len(shape)) if same(shape[d], 1)]
    repeated = [d for d in range(len(shape)) if d not in ones and d not in real]
    return (*ones, *repeated, *real)


def _typical(size: Dim) -> int:
    """The size for symbols that are large: enough to say which of two strides is wider."""
    return size if isinstance(size, int) else int(bind(size, {s.name: 10007 for s in size.free_symbols}))


def dense_like(type: TensorType, order: Sequence[int]) -> Shape:
    """Dense strides with the dimensions in that order, outermost first."""
    strides: list[Dim] = [0] * type.rank
    step: Dim = 1
    for axis in reversed(order):
        strides[axis] = step
        step = product((step, type.shape[axis]))
    return tuple(strides)


def place(graph: Graph) -> dict[Value, View]:
    """Every value's view: inputs and constants contiguous, views of views where strides can say so, the rest by `dense_rule`.

    What is concatenated is written into the concatenation's memory at once, where its kernel can.
    """
    turned = {v: View(v, channels_last(v.type.shape)) for v in _pictures(graph)}
    return _place(graph, {**turned, **in_place(graph, _place(graph, turned))})


def _pictures(graph: Graph) -> list[Value]:
    """What is computed element by element and convolved in int8, by a kernel that wants channels innermost: its own turns it."""
    producers = {v: n for n in graph.nodes for v in n.outputs}
    read = dict.fromkeys(n.inputs[0] for n in graph.nodes if _has(n, "IntegerConvolution"))
    made = [v for v in read if v.type.rank == 4 and v in producers and v not in graph.outputs]
    return [v for v in made if len(producers[v].outputs) == 1 and _is_pointwise(producers[v])]


def _is_pointwise(node: Node) -> bool:
    return getattr(node.op, "kind", "pointwise" if type(node.op).__name__ == "Quantize" else "") == "pointwise"


def _place(graph: Graph, given: Placed) -> dict[Value, View]:
    placed: dict[Value, View] = {v: View(v, contiguous(v.type.shape)) for v in (*graph.inputs, *graph.constants)}
    for node in graph.nodes:
        place_node(node, placed)
        placed.update({v: given[v] for v in node.outputs if v in given})
    return placed


def place_node(node: Node, placed: dict[Value, View]) -> None:
    """Add the views of a node's outputs."""
    rule = VIEWS.get(type(node.op).__name__)
    view = rule(node, placed[node.inputs[0]]) if rule else None
    if view is not None:
        placed[node.outputs[0]] = view
        return
    for value in node.outputs:
        placed[value] = View(value, dense_rule(node, value, placed))


def is_view(node: Node, placed: Placed) -> bool:
    """Whether the node's output is where its input is, so that nothing needs to run."""
    if type(node.op).__name__ == "Concat":
        return all(part_is_placed(node, index, placed) for index in range(len(node.inputs)))
    return type(node.op).__name__ in VIEWS and placed[node.outputs[0]].root is placed[node.inputs[0]].root


# ---- concatenation --------------------------------------------------------------------------------------------------------

# Fused nodes, and ops alone, whose kernels write through whatever strides the output has.
STRIDED_KINDS = frozenset({"gemm", "gemm_int8", "gemm_float8", "convolution", "convolution_int8", "depthwise", "pool", "pointwise"})
STRIDED_OPS = frozenset({"Convolution", "Linear", "MatMul", "MaxPool", "AvgPool", "AdaptiveAvgPool", "Resize", "Pad", "Tile"})
_ALIGNED_BYTES = 16  # a kernel stores whole vectors only at multiples of its vector


def in_place(graph: Graph, placed: Placed) -> dict[Value, View]:
    """Views of values in the concatenations that they are parts of, and of those. placed: where everything would be without."""
    producers = {v: n for n in graph.nodes for v in n.outputs}
    outputs, found = set(graph.outputs), dict[Value, View]()
    for node in reversed(graph.nodes):  # the concatenation that another one is part of comes after it
        if type(node.op).__name__ != "Concat":
            continue
        (whole,) = node.outputs
        if shared := _run_of(node, found):
            found[whole] = shared
            continue
        orders = {memory_order(v.type.shape, placed[v].strides) for v in node.inputs if v in producers}
        strides = found[whole].strides if whole in found else dense_like(whole.type, min(orders)) if len(orders) == 1 else None
        if strides is None:
            continue
        view = found.get(whole, View(whole, strides))
        parts: dict[Value, View] = {}
        for index, part in enumerate(node.inputs):
            slot = part_view(node, index, view)
            producer = producers.get(part)
            free = producer is not None and part not in outputs and part not in found and node.inputs.count(part) == 1
            if free and producer is not None and _writes_strided(producer) and _is_aligned(slot, part):
                parts[part] = slot
        if len(node.inputs) - len(parts) <= 1 and parts:  # one copy at most is left to run
            found.update({whole: view, **parts})
    return found


def _run_of(node: Node, found: Placed) -> View | None:
    """Where a concatenation is that is a run of the parts of another one, as in a dense block: nothing is left to do."""
    first = found.get(node.inputs[0])
    if first is None or node.outputs[0] in found:
        return None
    placed = {**{v: found[v] for v in node.inputs if v in found}, node.outputs[0]: first}
    there = all(v in placed for v in node.inputs) and all(part_is_placed(node, i, placed) for i in range(len(node.inputs)))
    return first if there else None


def part_view(node: Node, index: int, whole: View) -> View:
    """Where one input of a concatenation is in its output."""
    dim: int = node.op.dim  # type: ignore[attr-defined]
    start = total([v.type.shape[dim] for v in node.inputs[:index]])
    return View(whole.root, whole.strides, simplify(whole.offset + start * whole.strides[dim]))


def part_is_placed(node: Node, index: int, placed: Placed) -> bool:
    """Whether one input of a concatenation is written where its output has it."""
    slot, view = part_view(node, index, placed[node.outputs[0]]), placed[node.inputs[index]]
    return view.root is slot.root and same(view.offset, slot.offset) and all(map(same, view.strides, slot.strides))


def _writes_strided(node: Node) -> bool:
    kind, name = getattr(node.op, "kind", None), type(node.op).__name__
    return len(node.outputs) == 1 and (kind in STRIDED_KINDS or name in STRIDED_OPS or name == "Concat")


def _is_aligned(view: View, value: Value) -> bool:
    unit = _ALIGNED_BYTES // value.type.dtype.itemsize
    wide = [s for n, s in zip(value.type.shape, view.strides, strict=True) if not same(n, 1) and not same(s, 1)]
    return all(divisible(s, unit) for s in (view.offset, *wide))


# ---- layouts --------------------------------------------------------------------------------------------------------------


def dense_rule(node: Node, value: Value, placed: Placed) -> Shape:
    """Strides of a value that a kernel writes: channels-last for what convolutions and pooling give, else as the widest input."""
    shape = value.type.shape
    if value.type.rank == 4 and _is_spatial(node):
        return channels_last(shape)
    if value.type.rank > 3 and (_has(node, "Attention") or _has(node, "Float8Attention")):
        # every query's heads lie together, as the projection that follows takes them
        *batch, length, features = range(value.type.rank)
        return dense_like(value.type, (batch[0], length, *batch[1:], features))
    for given in node.inputs:
        if given.type.rank == value.type.rank and all(map(same, given.type.shape, shape)):
            strides = placed[given].strides
            if not any(same(s, 0) and not same(n, 1) for n, s in zip(shape, strides, strict=True)):
                return dense_like(value.type, memory_order(shape, strides))
    if value.type.rank == 4 and any(_is_channels_last(v, placed) for v in node.inputs):
        return channels_last(shape)
    return contiguous(shape)


def _has(node: Node, kind: str) -> bool:
    body = getattr(node.op, "body", None)
    return any(_has(n, kind) for n in body.nodes) if body else type(node.op).__name__ == kind


def _is_spatial(node: Node) -> bool:
    body = getattr(node.op, "body", None)
    return any(map(_is_spatial, body.nodes)) if body else type(node.op).__name__ in SPATIAL


# Ops whose four-dimensional results are channels-last, alone or in a fused node.
SPATIAL = frozenset(
    {
        *("Convolution", "ConvolutionTransposed", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "BatchNorm"),
        *("GroupNorm", "Resize", "IntegerConvolution"),
    }
)


def _is_channels_last(value: Value, placed: Placed) -> bool:
    shape, strides = value.type.shape, placed[value].strides
    return value.type.rank == 4 and not same(shape[1], 1) and same(strides[1], 1) and not same(product(shape[2:]), 1)


# ---- views ----------------------------------------------------------------------------------------------------------------


def _permute(node: Node, x: View) -> View:
    return View(x.root, tuple(x.strides[d] for d in node.op.dims), x.offset)  # type: ignore[attr-defined]


def _slice(node: Node, x: View) -> View:
    op = node.op
    dim, start, step = op.dim, op.start, op.step  # type: ignore[attr-defined]
    strides = tuple(simplify(s * step) if axis == dim else s for axis, s in enumerate(x.strides))
    return View(x.root, strides, simplify(x.offset + start * x.strides[dim]))


def _expand(node: Node, x: View) -> View:
    shape, wanted = node.inputs[0].type.shape, node.outputs[0].type.shape
    new = len(wanted) - len(shape)
    strides: list[Dim] = [0] * new
    for size, stride, target in zip(shape, x.strides, wanted[new:], strict=True):
        strides.append(stride if same(size, target) else 0)
    return View(x.root, tuple(strides), x.offset)


def _reshape(node: Node, x: View) -> View | None:
    strides = reshaped_strides(node.inputs[0].type.shape, x.strides, node.outputs[0].type.shape)
    return None if strides is None else View(x.root, strides, x.offset)


def reshaped_strides(shape: Shape, strides: Shape, wanted: Shape) -> Shape | None:
    """Strides under which the same storage has another shape; None where only a copy could."""
    # runs of old dimensions that lie in one sweep, sizes of 1 left out
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if not same(n, 1)]
    result: list[Dim] = []
    pending = list(wanted)
    position = 0
    while pending:
        size = pending[0]
        if same(size, 1):
            result.append(1)
            pending.pop(0)
            continue
        if position == len(old):
            return None
        # the smallest group of old dimensions and of new ones with the same number of elements
        have, want = old[position][0], size
        olds, news = 1, 1
        while not same(have, want):
            more_old = position + olds < len(old)
            more_new = news < len(pending)
            if _less(have, want) and more_old:
                have = product((have, old[position + olds][0]))
                olds += 1
            elif more_new and not _less(have, want):
                want = product((want, pending[news]))
                news += 1
            else:
                return None
        group = old[position : position + olds]
        for (_, outer), (n, inner) in pairwise(group):
            if not same(outer, n * inner):
                return None
        step: Dim = group[-1][1]
        inner_first: list[Dim] = []
        for n in reversed(pending[:news]):
            inner_first.append(step)
            step = product((step, n))
        result.extend(reversed(inner_first))
        position += olds
        del pending[:news]
    return tuple(result) if position == len(old) else None


def _less(a: Dim, b: Dim) -> bool:
    """Whether a is smaller, as far as factors tell: a symbolic size counts as smaller than its multiples."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    ratio = simplify(b / a) if not isinstance(b, int) else simplify(1 / (a / b))
    return bool(getattr(ratio, "is_Integer", isinstance(ratio, int)) and ratio > 1)


VIEWS: dict[str, Callable[[Node, View], View | None]] = {
    "Reshape": _reshape,
    "Permute": _permute,
    "Slice": _slice,
    "Expand": _expand,
}


def byte_alignment(view: View, dtype: torch.dtype) -> int:
    """What the view's first byte's address is certainly a multiple of, at most 256; roots start at multiples of 256."""
    offset = simplify(view.offset * dtype.itemsize)
    for align in (256, 128, 64, 32, 16, 8, 4, 2):
        if divisible(offset, align):
            return align
    return 1


def divisible(size: Dim, by: int) -> bool:
    """Whether a size is certainly a multiple of `by`, whatever its symbols are."""
    if isinstance(size, int):
        return size % by == 0
    terms = size.as_ordered_terms()
    return all(getattr(c := t.as_coeff_Mul()[0], "is_Integer", False) and int(c) % by == 0 for t in terms)
