"""The gate that every tactic passes before it is timed: its results against float64, no worse than PyTorch's in the same dtype."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.backends.cuda.expressions import has_coarse
from torchsmith.backends.cuda.float8 import FLOAT8, Float8Attention, Float8Linear
from torchsmith.backends.cuda.fuse.fused import bind_graph, flattened
from torchsmith.backends.cuda.precision import Tf32
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.widen import wide as wider
from torchsmith.ir.widen import widened
from torchsmith.ops.attention import Attention
from torchsmith.ops.quantize import Quantize

WORSE = 1.1  # than PyTorch's own error
WORST_ELEMENT = 8.0  # times PyTorch's largest error of one element
# What reordered sums and rounded intermediate results may add, relative to the norm.
FLOORS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3, FLOAT8: 0.0}
# What rounding both operands of a product to TF32 adds, where it is allowed and PyTorch's own kernel happens not to: 3e-4 for
# normal numbers.
TF32_FLOOR = 4e-4
# Of what is rounded to eight bits: of some thousand numbers that lie between two steps, one may be rounded the other way.
QUANTIZED_FLOOR = 2e-3
# Where such a number comes from a coarse function (see `program.py`) it is moved by 3e-4 of itself before it is rounded, which
# turns one of a hundred by a step.
COARSE_FLOOR = 5e-3
# Steps of float8 are up to an eighth of a number: what moves by 1e-3, as sums of thousands of products in tensor cores do (see
# `float8.py`), is rounded the other way once in a hundred times, which makes 1e-2 of it.
FLOAT8_FLOOR, FLOAT8_QUANTIZED_FLOOR = 5e-3, 2e-2
# Rounding probabilities to three bits makes 3e-2; what a kernel rounds are exponentials that are not yet divided by their sum,
# which are other numbers, and one that rounds none is off by as much from what rounds them.
PROBABILITIES_FLOOR = 6e-2
_CHUNK = 1 << 24  # elements compared at once, so that float64 copies stay small


@dataclass(frozen=True)
class Accuracy:
    """error: relative to the norm of float64's results, the greatest of the outputs. fault: why it is too much, or None."""

    error: float
    fault: str | None


@dataclass(frozen=True)
class Distance:
    """relative: to the norm. worst, greatest: the largest difference, the largest value. missing: not finite, and should be."""

    relative: float
    worst: float
    greatest: float
    missing: int


@dataclass(frozen=True)
class References:
    """What a node should give for some inputs. wide: in float64. eager: in the node's own dtypes, by PyTorch."""

    wide: Sequence[Tensor]
    eager: Sequence[Tensor]
    floor: float

    @functools.cached_property
    def eager_distances(self) -> list[Distance]:
        return [_distance(e, w) for e, w in zip(self.eager, self.wide, strict=True)]

    def is_finite(self) -> bool:
        floats = [t.float() if t.dtype == FLOAT8 else t for t in (*self.wide, *self.eager) if t.is_floating_point()]
        return all(bool(torch.isfinite(t).all()) for t in floats)


def body_of(node: Node, at: dict[str, int]) -> Graph:
    """What a node means, at these sizes: its inputs, constants among them, are the graph's."""
    graph = Graph(tuple(dict.fromkeys(node.inputs)), tuple(flattened([node])), node.outputs)
    return bind_graph(graph, at)


def references(body: Graph, inputs: Sequence[Tensor], tf32: Tf32 | None = None) -> References:
    """inputs: of the body's own dtypes. tf32: where PyTorch may round to it; nowhere if it is not given.

    Where float64 is not to be had, for lack of memory or of a kernel, PyTorch's results stand for it.
    """
    tf32 = tf32 or Tf32()
    with tf32.applied():
        eager = interpret(body, inputs)
    dtypes = {v.type.dtype for v in body.values() if v.type.dtype.is_floating_point}
    floor = max((FLOORS.get(d, 0.25) for d in dtypes), default=0.0)
    if any(tf32.of_node(n) and not isinstance(n.op, Attention) for n in body.nodes):  # attention makes up for it
        floor = max(floor, TF32_FLOOR)
    floor = max([floor, *map(_floor, body.nodes)])
    if floor == QUANTIZED_FLOOR and any(has_coarse(n) for n in body.nodes):
        floor = COARSE_FLOOR
    try:
        wide = interpret(widened(body), [t.to(wider(t.dtype)) for t in inputs])
    except (torch.OutOfMemoryError, NotImplementedError):
        return References(eager, eager, 3 * floor)
    return References(wide, eager, floor)


def _floor(node: Node) -> float:
    """What an op adds that rounds to eight bits, or multiplies such numbers."""
    op = node.op
    if isinstance(op, Float8Attention) and op.probabilities is not None:
        return PROBABILITIES_FLOOR
    if isinstance(op, Quantize):
        return FLOAT8_QUANTIZED_FLOOR if op.dtype == FLOAT8 else QUANTIZED_FLOOR
    return FLOAT8_FLOOR if isinstance(op, (Float8Linear, Float8Attention)) else 0.0


def judge(found: Sequence[Tensor], wanted: References) -> Accuracy:
    """Compare outputs with what they should be."""
    worst = 0.0
    for index, (f, w, eager) in enumerate(zip(found, wanted.wide, wanted.eager_distances, strict=True)):
        own = _distance(f, w)
        worst = max(worst, own.relative)
        allowed = WORSE * eager.relative + wanted.floor
        if own.missing:
            return Accuracy(math.inf, f"output {index} has {own.missing} elements that are no numbers, or were not written")
        if not own.relative <= allowed:
            return Accuracy(
                own.relative, f"output {index} is off by {own.relative:.2g}; PyTorch by {eager.relative:.2g}, allowed {allowed:.2g}"
            )
        most = WORST_ELEMENT * eager.worst + 16 * wanted.floor * own.greatest
        if f.dtype in (torch.int8, torch.uint8):
            most = max(1.0, WORST_ELEMENT * eager.worst)
        if not own.worst <= most:
            return Accuracy(
                own.relative, f"an element of output {index} is off by {own.worst:.2g}; PyTorch by at most {eager.worst:.2g}"
            )
    return Accuracy(worst, None)


def _distance(found: Tensor, wanted: Tensor) -> Distance:
    square = size = worst = greatest = 0.0
    missing = count = 0
    for f, w in _chunks(found, wanted):
        f, w = f.double(), w.double()
        usable = torch.isfinite(w)
        if wanted.is_floating_point() and found.dtype != torch.float64:
            usable &= w.abs() <= torch.finfo(found.dtype).max  # overflows in its own dtype
        missing += int((usable & ~torch.isfinite(f)).sum()) + int((torch.isinf(w) & (f != w)).sum())
        w = torch.where(usable, w, 0.0)
        difference = torch.where(usable, f, 0.0).nan_to_num(0.0, 0.0, 0.0) - w
        count += w.numel()
        if w.numel():
            square, size = square + float(difference.square().sum()), size + float(w.square().sum())
            worst, greatest = max(worst, float(difference.abs().max())), max(greatest, float(w.abs().max()))
    # results that are all but zero are compared as they are
    return Distance(math.sqrt(square / max(size, 1e-12 * count, 1e-300)), worst, greatest, missing)


def _chunks(found: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if found.dim() == 0 or found.numel() <= _CHUNK:
        yield found, wanted
        return
    axis = max(range(found.dim()), key=lambda d: found.shape[d])
    rows = max(1, _CHUNK * found.shape[axis] // found.numel())
    for start in range(0, found.shape[axis], rows):
        length = min(rows, found.shape[axis] - start)
        yield found.narrow(axis, start, length), wanted.narrow(axis, start, length)


def index_limit(body: Graph, value: Value) -> int:
    """Below which whole numbers make valid indices of an input: 2 where it is not itself an index, but may become part of one."""
    users = [n for n in body.nodes if value in n.inputs]
    if not users or any(type(n.op).__name__ not in _LOOKS_UP or value not in n.inputs[1:2] for n in users):
        return 2
    return max(1, min(int(n.inputs[0].type.shape[getattr(n.op, "dim", 0)]) for n in users))


_LOOKS_UP = frozenset({"Gather", "GatherElements", "ScatterElements", "ScatterRows"})
