"""Attention written out, softmax(scale * q @ k.T + mask) @ v, becomes the op; heads that share keys become a dimension.

Casts around the softmax fall away: the op's scores and softmax are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from torchsmith.backends.cuda.fuse.rules import apply
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.rewrite import Seen
from torchsmith.ops.attention import Attention
from torchsmith.ops.cast import Cast
from torchsmith.ops.clamp import Clamp
from torchsmith.ops.permute import Permute
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.unary import Unary


def attention(graph: Graph) -> Graph:
    return apply(graph, [_written_out, _shared_heads])


def _written_out(node: Node, seen: Seen) -> Sequence[Value] | None:
    """MatMul(casts(Softmax(mask(scale(MatMul(q, k transposed)))), v)."""
    if type(node.op).__name__ != "MatMul" or node.inputs[0].type.rank < 3:
        return None
    q_type = node.inputs[1].type.dtype
    current = _through_casts(node.inputs[0], seen)
    softmax = seen.producer(current)
    if softmax is None or type(softmax.op).__name__ != "Softmax" or softmax.op.dim != current.type.rank - 1:  # type: ignore[attr-defined]
        return None
    if seen.uses(node.inputs[0]) > 1 or seen.uses(current) > 1:
        return None  # the weights are wanted themselves
    found = _scores(softmax.inputs[0], seen)
    if found is None:
        return None
    product, scale, mask = found
    q, transposed = product.inputs
    if q.type.dtype != q_type or transposed.type.dtype != q_type or not q_type.is_floating_point or transposed.type.rank < 3:
        return None
    rank = transposed.type.rank
    k = Permute((*range(rank - 2), rank - 1, rank - 2))(transposed)
    given = [q, k, node.inputs[1], *([_as_mask(mask, q_type)] if mask else [])]
    try:
        result = Attention(scale, False).infer(*(v.type for v in given))
    except Unsupported:
        return None  # the mask has more dimensions than the scores, say
    if not result.matches(node.outputs[0].type):
        return None
    y: Value = Attention(scale, False)(*given)
    return [y]


def _scores(value: Value, seen: Seen) -> tuple[Node, float, Value | None] | None:
    """The product q @ k.T that scores come from, their scale, and what hides or is added; None where they are anything else."""
    scale, mask = 1.0, None
    while True:
        node = seen.producer(value)
        kind = type(node.op).__name__ if node else None
        if node is None or seen.uses(value) > 1:
            return None
        if kind == "MatMul":
            return node, scale, mask
        if kind == "Cast" and node.inputs[0].type.dtype.is_floating_point and value.type.dtype.is_floating_point:
            value = node.inputs[0]
        elif str(node.op) in ("Binary[mul]", "Binary[div]") and (factor := _number(node, seen)) is not None:
            value, number = factor
            scale *= number if str(node.op) == "Binary[mul]" else 1 / number
        elif str(node.op) == "Binary[add]" and mask is None and scale == 1.0 and (parts := _added(node, seen)) is not None:
            value, mask = parts
        elif kind == "Where" and mask is None and (hidden := _hidden(node, seen)) is not None:
            value, mask = hidden
        else:
            return None


def _number(node: Node, seen: Seen) -> tuple[Value, float] | None:
    """The operand of a product or quotient that is no number, and the number."""
    a, b = node.inputs
    for x, factor in ((a, b), (b, a)) if str(node.op) == "Binary[mul]" else ((a, b),):
        given = seen.constant(factor)
        if given is not None and given.numel() == 1 and float(given) != 0 and _covers(x, node):
            return x, float(given)
    return None


def _added(node: Node, seen: Seen) -> tuple[Value, Value] | None:
    """(scores, mask) of a sum: the scores are what leads to a product."""
    a, b = node.inputs
    for scores, mask in ((a, b), (b, a)):
        if _covers(scores, node) and _scores(scores, seen) is not None:
            return scores, mask
    return None


def _covers(x: Value, node: Node) -> bool:
    """Whether an operand has the shape of the result: it is not broadcast."""
    shape = node.outputs[0].type.shape
    return x.type.rank == len(shape) and all(map(same, x.type.shape, shape))


def _hidden(node: Node, seen: Seen) -> tuple[Value, Value] | None:
    """(scores, mask of what takes part) of a choice between scores and a number so low that its weight is zero."""
    condition, *choices = node.inputs
    for index, scores in enumerate(choices):
        fill = seen.constant(choices[1 - index])
        if fill is not None and fill.numel() == 1 and float(fill) <= -1e4 and _covers(scores, node):
            return (scores, condition) if index == 0 else (scores, Unary("logical_not")(condition))
    return None


def _as_mask(mask: Value, dtype: torch.dtype) -> Value:
    """Bool, or the query's dtype; finite numbers stay finite."""
    if mask.type.dtype in (torch.bool, dtype):
        return mask
    least = torch.finfo(dtype).min
    if math.isfinite(least) and torch.finfo(mask.type.dtype).min < least:
        mask = Clamp(least, None)(mask)
    narrow: Value = Cast(dtype)(mask)
    return narrow


def _through_casts(value: Value, seen: Seen) -> Value:
    while (node := seen.producer(value)) is not None and type(node.op).__name__ == "Cast" and seen.uses(value) == 1:
        if not node.inputs[0].type.dtype.is_floating_point:
            break
        value = node.inputs[0]
    return value


def _shared_heads(node: Node, seen: Seen) -> Sequence[Value] | None:
    """Keys and values that several heads share (Reshape of Expand, which only a copy could place) get a dimension of their own."""
    if type(node.op).__name__ != "Attention" or len(node.inputs) > 3 or node.inputs[0].type.rank != 4:
        return None
    q, k, v = node.inputs
    keys, values = _repeated(k, seen), _repeated(v, seen)
    batch, heads, length, features = q.type.shape
    if keys is None or values is None or not isinstance(heads, int):
        return None
    own = keys.type.shape[1]
    if not isinstance(own, int) or not same(own, values.type.shape[1]) or heads % own:
        return None
    y = node.op(Reshape((batch, own, heads // own, length, features))(q), keys, values)
    return [Reshape(node.outputs[0].type.shape)(y)]


def _repeated(value: Value, seen: Seen) -> Value | None:
    """(B, own, 1, S, E) of what is that expanded to (B, own, shared, S, E) and reshaped to (B, heads, S, E)."""
    reshape = seen.producer(value)
    if reshape is None or type(reshape.op).__name__ != "Reshape" or reshape.inputs[0].type.rank != 5:
        return None
    expand = seen.producer(reshape.inputs[0])
    if expand is None or type(expand.op).__name__ != "Expand" or expand.inputs[0].type.rank != 5:
        return None
    x = expand.inputs[0]
    wide, kept = expand.outputs[0].type.shape, (0, 1, 3, 4)
    fits = same(x.type.shape[2], 1) and all(same(x.type.shape[d], wide[d]) for d in kept)
    return x if fits and all(same(value.type.shape[i], wide[d]) for i, d in ((0, 0), (2, 3), (3, 4))) else None
