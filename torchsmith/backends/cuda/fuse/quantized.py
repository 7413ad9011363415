"""Quantize/dequantize pairs become products of eight bits, whose scales are part of what follows them; bytes flow between.

    Linear(Dequantize(q, s), Dequantize(w, t), bias)  ->  float(IntegerLinear(q, w)) * (s * t) + (bias - zero point's share)
    of float8                                         ->  Float8Linear(q, w) * (s * t) + bias, and attention likewise

What is left of the pairs is pointwise: a kernel quantizes what it writes, another one dequantizes what it loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.cuda.float8 import FLOAT8, Float8Attention, Float8Linear
from torchsmith.backends.cuda.fuse.epilogue import convolution_kind, kind_of
from torchsmith.backends.cuda.fuse.quantized_parts import before_move, quantized_parts
from torchsmith.backends.cuda.fuse.quantized_scales import one_scale
from torchsmith.backends.cuda.fuse.rules import apply
from torchsmith.backends.cuda.fuse.siblings import siblings
from torchsmith.backends.cuda.groups import LEAST_CHANNELS, merged
from torchsmith.backends.cuda.integers import IntegerConvolution, IntegerLinear
from torchsmith.backends.cuda.program import is_pointwise
from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.rewrite import Seen
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast
from torchsmith.ops.linear import Linear
from torchsmith.ops.pad import Pad
from torchsmith.ops.permute import Permute
from torchsmith.ops.quantize import OFFSET, Dequantize, Quantize

MOVES = frozenset({"Reshape", "Permute", "Slice", "Expand"})
ORDERED = frozenset({"MaxPool"})  # the greatest of some numbers is that of the integers that they are
CUTS = 2  # a value's parts may be cut once more


def quantized(graph: Graph) -> Graph:
    if not any(isinstance(node.op, (Quantize, Dequantize)) for node in graph.nodes):
        return graph
    moving = [_of_constant, _cast, _cast_before, _linear, _move_before, _concatenation, _move_after]
    graph = siblings(apply(_signed(graph), moving))  # while weights and scales are still apart
    for _ in range(CUTS):
        graph = apply(quantized_parts(graph), moving)
    graph = apply(graph, [*moving, _product, _attention])
    return _for_each_user(apply(graph, [_of_weights, _per_channel, one_scale]))


def _signed(graph: Graph) -> Graph:
    """Pairs through uint8 go through int8: the same numbers less 128, zero points too."""
    users, outputs = graph.users(), set(graph.outputs)
    made, now = dict(graph.constants), dict[Value, Value]()
    nodes = list[Node]()
    for node in graph.nodes:
        op, inputs = node.op, tuple(now.get(v, v) for v in node.inputs)
        if isinstance(op, Quantize) and op.dtype == torch.uint8 and _only_dequantized(node, users, outputs, graph):
            (old,) = node.outputs
            shift = replace(op, dtype=torch.int8, low=op.low - OFFSET, high=op.high - OFFSET)
            new = now[old] = Value(f"{old.name}.signed", old.type.with_dtype(torch.int8))
            nodes.append(Node(shift, (*inputs[:2], _shifted(node, made)), (new,), node.origin))
        elif isinstance(op, Dequantize) and inputs != node.inputs:
            nodes.append(Node(op, (*inputs[:2], _shifted(node, made)), node.outputs, node.origin))
        else:
            nodes.append(node)
    wanted = {v for n in nodes for v in n.inputs} | outputs
    return replace(graph, nodes=tuple(nodes), constants={v: t for v, t in made.items() if v in wanted})


def _only_dequantized(node: Node, users: dict[Value, list[Node]], outputs: set[Value], graph: Graph) -> bool:
    (q,) = node.outputs
    parts = [node, *users[q]]
    known = all(v in graph.constants for n in parts for v in n.inputs[2:])
    return q not in outputs and known and all(isinstance(n.op, Dequantize) and n.inputs[0] is q for n in users[q])


def _shifted(node: Node, made: dict[Value, Tensor]) -> Value:
    """The zero point that a signed one has. Adds it to the constants."""
    scale = node.inputs[1]
    given = made[node.inputs[2]].to(torch.int32) if len(node.inputs) > 2 else torch.zeros(scale.type.shape, dtype=torch.int32)
    value = Value(f"{node.outputs[0].name}.zero_point", TensorType(scale.type.shape, torch.int8))
    made[value] = (given - OFFSET).to(torch.int8)
    return value


# ---- rules ----------------------------------------------------------------------------------------------------------------


def _of_constant(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A constant that is quantized is a constant of integers."""
    given = [seen.constant(v) for v in node.inputs]
    if not isinstance(node.op, Quantize) or any(t is None for t in given):
        return None
    return [constant(node.op.reference(*(t for t in given if t is not None)), node.outputs[0].name)]


def _cast(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A pair's result is rounded once, to the dtype that is wanted."""
    before = seen.producer(node.inputs[0]) if isinstance(node.op, Cast) else None
    if before is None or not isinstance(before.op, Dequantize) or not node.outputs[0].type.dtype.is_floating_point:
        return None
    if before.op.dtype not in (torch.float32, torch.float64):
        return None
    return [replace(before.op, dtype=node.outputs[0].type.dtype)(*before.inputs)]


def _cast_before(node: Node, seen: Seen) -> Sequence[Value] | None:
    """What is quantized is made wider for it anyway."""
    before = seen.producer(node.inputs[0]) if isinstance(node.op, Quantize) else None
    if before is None or not isinstance(before.op, Cast) or node.inputs[0].type.dtype != torch.float32:
        return None
    x = before.inputs[0]
    return [node.op(x, *node.inputs[1:])] if x.type.dtype in (torch.float16, torch.bfloat16) else None


def _linear(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A product of a pair with constant weights (K, N) is a linear layer, as transformers' Conv1D has it."""
    before = [seen.producer(v) for v in node.inputs] if type(node.op).__name__ == "MatMul" else []
    if len(before) < 2 or any(n is None or not isinstance(n.op, Dequantize) for n in before):
        return None
    x, pair = node.inputs[0], before[1]
    weight = seen.constant(pair.inputs[0]) if pair is not None else None
    if pair is None or weight is None or weight.dim() != 2 or len(pair.inputs) > 2 or x.type.rank < 2:
        return None
    if pair.op.axis not in (1, None):  # type: ignore[attr-defined]
        return None
    op = pair.op if pair.op.axis is None else replace(pair.op, axis=0)  # type: ignore[attr-defined, call-arg]
    return [Linear()(x, op(constant(weight.t().contiguous(), "weight"), pair.inputs[1]))]


def _move_before(node: Node, seen: Seen) -> Sequence[Value] | None:
    """What moves elements about, or chooses among them, does so with integers: a product finds them behind it."""
    before = seen.producer(node.inputs[0]) if type(node.op).__name__ in MOVES | ORDERED else None
    if before is None or not isinstance(before.op, Dequantize) or before.op.axis is not None:
        return None
    if type(node.op).__name__ in ORDERED and before.inputs[0].type.dtype == FLOAT8:
        return None
    return [before.op(node.op(before.inputs[0]), *before.inputs[1:])]


def _concatenation(node: Node, seen: Seen) -> Sequence[Value] | None:
    """Integers of one scale are concatenated as they are."""
    if type(node.op).__name__ != "Concat":
        return None
    parts = [_integers(v, seen) for v in node.inputs]
    first = parts[0]
    if first is None or not all(p is not None and p.is_like(first) for p in parts):
        return None
    pair = seen.producer(node.inputs[0])
    assert pair is not None, f"{node} concatenates what nothing gives"
    return [pair.op(node.op(*(p.q for p in parts if p is not None)), *pair.inputs[1:])]


def _move_after(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A kernel quantizes what it writes, if nothing but moves follows it."""
    before = seen.producer(node.inputs[0]) if isinstance(node.op, Quantize) else None
    if before is None or type(before.op).__name__ not in MOVES - {"Slice"} or seen.uses(node.inputs[0]) > 1:
        return None
    if node.op.axis is None:  # type: ignore[attr-defined]
        return [before.op(node.op(before.inputs[0], *node.inputs[1:]))]
    scales = seen.constant(node.inputs[1])
    found = None if scales is None or len(node.inputs) > 2 else before_move(before, node.op.axis, scales)  # type: ignore[attr-defined]
    if found is None:
        return None
    axis, moved = found
    return [before.op(replace(node.op, axis=axis)(before.inputs[0], constant(moved, "scale")))]  # type: ignore[call-arg]


Main = IntegerLinear | IntegerConvolution | Float8Linear


@dataclass(frozen=True)
class Integers:
    """What a value stands for: (q - zero_point) * scale. scale, zero_point: one number, or one a channel along `axis`."""

    q: Value
    scale: Tensor
    zero_point: Tensor | None
    axis: int | None

    def is_like(self, other: Integers) -> bool:
        """Whether the same integers of both are the same numbers."""
        if self.axis is not None or other.axis is not None or self.q.type.dtype != other.q.type.dtype:
            return False
        zeros = [0 if p.zero_point is None else int(p.zero_point) for p in (self, other)]
        return zeros[0] == zeros[1] and float(self.scale) == float(other.scale)


def _integers(value: Value, seen: Seen) -> Integers | None:
    node = seen.producer(value)
    if node is None or not isinstance(node.op, Dequantize):
        return None
    scale = seen.constant(node.inputs[1])
    zero = seen.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    known = scale is not None and (zero is not None or len(node.inputs) == 2)
    return Integers(node.inputs[0], scale, zero, node.op.axis) if known and scale is not None else None


def _product(node: Node, seen: Seen) -> Sequence[Value] | None:
    """A linear layer or a convolution of two pairs."""
    if type(node.op).__name__ not in ("Linear", "Convolution"):
        return None
    x, w = (_integers(v, seen) for v in node.inputs[:2])
    bias = seen.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if x is None or w is None or x.axis is not None or w.axis not in (None, 0) or (bias is None and len(node.inputs) > 2):
        return None
    weight = seen.constant(w.q)
    if weight is None or w.zero_point is not None or node.outputs[0].type.dtype == torch.float64:
        return None
    main = _main_op(node, weight.dtype) if x.q.type.dtype == weight.dtype else None
    if main is None:
        return None
    main, x = _without_padding(main, x)
    share = _share(main, x, weight)
    channels = (-1, *[1] * (weight.dim() - 2))  # of the result, from the right
    scale = (x.scale * w.scale).expand(weight.shape[0]).reshape(channels)
    sums = main(x.q, w.q)
    sums = sums if sums.type.dtype == torch.float32 else Cast(torch.float32)(sums)
    y = Binary("mul")(sums, constant(scale.contiguous(), "scale"))
    added = None if bias is None else bias.double().reshape(channels)
    if share is not None:
        added = (0.0 if added is None else added) - share.double() * scale.double()
    if added is not None:
        y = Binary("add")(y, _in_channels_last(added.float()))
    wanted = node.outputs[0].type.dtype
    return [y if wanted == torch.float32 else Cast(wanted)(y)]


def _in_channels_last(added: Tensor) -> Value:
    """What is added to the channels, or to each of a picture's numbers, which then lie as the picture's do."""
    if added.dim() < 4:
        return constant(added, "bias")
    y: Value = Permute((0, 3, 1, 2))(constant(added.movedim(1, -1).contiguous(), "bias"))
    return y


def _attention(node: Node, seen: Seen) -> Sequence[Value] | None:
    """Attention of three float8 pairs, each of one scale."""
    if type(node.op).__name__ != "Attention" or node.outputs[0].type.dtype == torch.float64:
        return None
    op: Any = node.op
    three = [_integers(v, seen) for v in node.inputs[:3]]
    if any(p is None or p.axis is not None or p.q.type.dtype != FLOAT8 for p in three):
        # the kernels of wider floats round no probabilities
        return [replace(op, probabilities=None)(*node.inputs)] if op.probabilities is not None else None
    q, k, v = (p for p in three if p is not None)
    main = Float8Attention(op.scale * float(q.scale) * float(k.scale), op.causal, op.probabilities)
    y = Binary("mul")(main(q.q, k.q, v.q, *node.inputs[3:]), constant(v.scale, "scale"))
    wanted = node.outputs[0].type.dtype
    return [y if wanted == torch.float32 else Cast(wanted)(y)]


def _main_op(node: Node, dtype: torch.dtype) -> Main | None:
    """The product of eight bits in the place of a node; None where there is no kernel for it."""
    op: Any = node.op
    weight = node.inputs[1].type
    if dtype == FLOAT8:
        return Float8Linear() if type(op).__name__ == "Linear" else None
    main: IntegerLinear | IntegerConvolution = IntegerLinear()
    if type(op).__name__ == "Convolution":
        if weight.rank != 4 or convolution_kind(node) == "depthwise" or _channels(node) < LEAST_CHANNELS:
            return None
        main = IntegerConvolution(op.stride, op.padding, op.dilation, op.groups)
    try:
        main.infer(*(v.type.with_dtype(torch.int8) for v in node.inputs[:2]))
    except Unsupported:
        return None
    return main


def _channels(node: Node) -> int:
    """Of a group of a convolution, as the kernel takes it; 0 where that is not known."""
    filters, channels = node.inputs[1].type.shape[:2]
    op: Any = node.op
    return merged(op.groups, channels, filters // op.groups)[1] if isinstance(filters, int) and isinstance(channels, int) else 0


def _without_padding(main: Main, x: Integers) -> tuple[Main, Integers]:
    """The same, where it is not known which results see padding, whose 0 is the zero point: that is written around x."""
    known = all(isinstance(size, int) for size in x.q.type.shape[1:])
    if known or x.zero_point is None or not isinstance(main, IntegerConvolution) or not any(map(any, main.padding)):
        return main, x
    before, after = ((0, 0, *(sides[end] for sides in main.padding)) for end in (0, 1))
    padded = Pad(before, after, value=float(x.zero_point))(x.q)
    return replace(main, padding=((0, 0),) * len(main.padding)), replace(x, q=padded)


def _share(main: Main, x: Integers, weight: Tensor) -> Tensor | None:
    """What the zero point adds to the sums: one number a channel, or one a pixel where some see padding, which stands for 0.

    None where there is no zero point.
    """
    if x.zero_point is None or isinstance(main, Float8Linear):
        return None
    if isinstance(main, IntegerLinear) or not any(map(any, main.padding)):
        share = weight.flatten(1).sum(1, dtype=torch.int32) * x.zero_point.to(torch.int32)
        return share.reshape(-1, *[1] * (weight.dim() - 2))
    return main.reference(x.zero_point.expand(1, *x.q.type.shape[1:]), weight)


def _of_weights(node: Node, seen: Seen) -> Sequence[Value] | None:
    """Weights of what is computed in floating numbers are those."""
    given = [seen.constant(v) for v in node.inputs]
    if not isinstance(node.op, Dequantize) or any(t is None for t in given):
        return None
    return [constant(node.op.reference(*(t for t in given if t is not None)), node.outputs[0].name)]


def _per_channel(node: Node, seen: Seen) -> Sequence[Value] | None:
    """Scales of channels are operands, which broadcast; what is left has one scale."""
    op = node.op
    if not isinstance(op, (Quantize, Dequantize)) or op.axis is None or len(node.inputs) > 2:
        return None
    x, given = node.inputs
    scale = seen.constant(given)
    if scale is None or node.inputs[0].type.dtype == torch.float64:
        return None
    spread = (-1, *[1] * (x.type.rank - 1 - op.axis))
    if isinstance(op, Quantize):
        wide = x if x.type.dtype == torch.float32 else Cast(torch.float32)(x)
        scaled = Binary("mul")(wide, constant((1.0 / scale).reshape(spread), "scale"))
        return [replace(op, axis=None)(scaled, constant(torch.tensor(1.0), "one"))]
    one = constant(torch.tensor(1.0), "one")
    number = Dequantize(torch.float32)(x, one) if x.type.dtype == FLOAT8 else Cast(torch.float32)(x)
    y = Binary("mul")(number, constant(scale.reshape(spread), "scale"))
    return [y if op.dtype == torch.float32 else Cast(op.dtype)(y)]


def _for_each_user(graph: Graph) -> Graph:
    """Each user whose kernel can dequantizes for itself: integers are what is read several times."""
    users = graph.users()
    nodes = list[Node]()
    own: dict[tuple[Node, Value], Value] = {}
    for node in graph.nodes:
        nodes.append(Node(node.op, tuple(own.get((node, v), v) for v in node.inputs), node.outputs, node.origin))
        if not isinstance(node.op, Dequantize):
            continue
        (y,) = node.outputs
        after = sorted(dict.fromkeys(users[y]), key=_dequantizes)  # what cannot takes the first one
        for index, user in enumerate(after[1:]):
            if _dequantizes(user):
                own[user, y] = Value(f"{y.name}.for{index}", y.type)
                nodes.append(Node(node.op, node.inputs, (own[user, y],), node.origin))
    return replace(graph, nodes=tuple(nodes))


def _dequantizes(node: Node) -> bool:
    """Whether the node's kernel can dequantize what it loads."""
    return is_pointwise(node) or kind_of(node) == "depthwise"
