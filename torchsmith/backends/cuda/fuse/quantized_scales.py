"""Scales and biases that follow one another before a value is quantized become one scale and one bias.

    Quantize(((x * a + b) * c) * d, s)        ->  Quantize(x * (a * c * d / s) + b * (c * d / s), 1)
    Quantize(LayerNorm(x, w, b) * c, s)       ->  Quantize(LayerNorm(x, w * c / s, b * c / s), 1)

The epilogue of a product of bytes has little time: its tile took half as long as one of half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.backends.cuda.float8 import FLOAT8
from torchsmith.ir.builder import constant
from torchsmith.ir.dim import same
from torchsmith.ir.graph import Node, Value
from torchsmith.ir.rewrite import Seen
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast
from torchsmith.ops.layer_norm import LayerNorm
from torchsmith.ops.quantize import Quantize
from torchsmith.ops.rms_norm import RmsNorm


@dataclass(frozen=True)
class Line:
    """x * factor + added, float64. steps: how many operations say so now."""

    x: Value
    factor: Tensor
    added: Tensor | None
    steps: int


def one_scale(node: Node, seen: Seen) -> Sequence[Value] | None:
    """What is rounded to a wider float in between is not: registers hold float32."""
    op = node.op
    if not isinstance(op, Quantize) or op.axis is not None or node.inputs[0].type.dtype == torch.float64:
        return None
    scale = seen.constant(node.inputs[1])
    if scale is None or (op.dtype != FLOAT8 and len(node.inputs) > 2):
        return None
    line = _line(node.inputs[0], seen)
    steps = line.steps + (float(scale) != 1.0)
    if line.factor.numel() == 1 and line.added is None:
        return None  # a number is multiplied by as it is
    if steps <= 1 + (line.added is not None):
        return None
    inverse = 1.0 / scale.double()
    normed = _in_norm(line, inverse, seen)
    if normed is not None:
        return [op(normed, constant(torch.tensor(1.0), "one"))]
    y = line.x if line.x.type.dtype == torch.float32 else Cast(torch.float32)(line.x)
    y = Binary("mul")(y, constant((line.factor * inverse).float(), "scale"))
    if line.added is not None:
        y = Binary("add")(y, constant((line.added * inverse).float(), "bias"))
    return [op(y, constant(torch.tensor(1.0), "one"))]


def _in_norm(line: Line, inverse: Tensor, seen: Seen) -> Value | None:
    """The line times `inverse` as a norm's weight and bias, where it starts at one that nothing else takes."""
    node = seen.producer(line.x)
    if node is None or not isinstance(node.op, (LayerNorm, RmsNorm)) or node.op.dims != 1 or seen.uses(line.x) != 1:
        return None
    given = [seen.constant(v) for v in node.inputs[1:]]
    if any(t is None for t in given) or (line.added is not None and isinstance(node.op, RmsNorm)):
        return None
    width, dtype = node.inputs[0].type.shape[-1], node.inputs[0].type.dtype
    if not isinstance(width, int):
        return None
    parameters = [(t.double() * line.factor * inverse).expand(width) for t in given if t is not None]
    parameters = parameters or [(line.factor * inverse).expand(width)]
    if line.added is not None:
        bias = parameters[1] if len(parameters) > 1 else torch.zeros(width, dtype=torch.float64)
        parameters[1:] = [bias + line.added * inverse]
    names = ("weight", "bias")
    normed: Value = node.op(node.inputs[0], *(constant(p.to(dtype), n) for p, n in zip(parameters, names, strict=False)))
    return normed


def _line(value: Value, seen: Seen) -> Line:
    """Back from a value to what constants are multiplied with and added to."""
    factor, added, steps = torch.ones((), dtype=torch.float64), None, 0
    while (node := seen.producer(value)) is not None and seen.uses(value) == 1:
        if not node.inputs:
            break
        name, given, x = str(node.op), seen.constant(node.inputs[-1]), node.inputs[0]
        keeps = x.type.rank == value.type.rank and all(map(same, x.type.shape, value.type.shape))
        if isinstance(node.op, Cast) and x.type.dtype in (torch.float32, torch.float16, torch.bfloat16):
            value = x
            continue
        if given is None or not keeps or given.dim() > 1 or name not in ("Binary[mul]", "Binary[add]"):
            break
        if name == "Binary[mul]":
            factor = factor * given.double()
        else:
            moved = factor * given.double()
            added = moved if added is None else added + moved
        value, steps = x, steps + 1
    return Line(value, factor, added, steps)
