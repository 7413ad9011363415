"""Graphs with float8 pairs, for the tests of its kernels: made by hand, or of a model whose layers are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.interpret import bind_symbols
from torchsmith.ir.types import TensorType
from torchsmith.ops.attention import Attention
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import dequantize, quantize

FLOAT8 = torch.float8_e4m3fn
GREATEST = torch.finfo(FLOAT8).max


def narrow(builder: Builder, x: Value, scale: Tensor | float, axis: int | None = None) -> Value:
    """x in float8. scale: a number, or one for each of dimension `axis`."""
    given = builder.constant(scale) if isinstance(scale, Tensor) else scale
    return quantize(x, given, None, axis, -448, 448, FLOAT8)


def pair(builder: Builder, x: Value, scale: Tensor | float, axis: int | None = None) -> Value:
    """x rounded to float8, in its own dtype."""
    given = builder.constant(scale) if isinstance(scale, Tensor) else scale
    return dequantize(narrow(builder, x, scale, axis), given, None, axis, x.type.dtype)


def weight(builder: Builder, w: Tensor, channels: bool = True) -> Value:
    """A layer's weight (N, K), rounded to float8 by a scale for each output channel, or by one."""
    if not channels:
        return pair(builder, builder.constant(w), float(w.float().abs().max()) / GREATEST)
    scales = w.float().abs().amax(1).clamp_min(1e-8) / GREATEST
    return pair(builder, builder.constant(w), scales, 0)


def drawn(*shape: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def linear(builder: Builder, x: Value, n: int, bias: bool = True, seed: int = 1) -> Value:
    """A layer of x, whose weights are rounded; x is what it is."""
    k = x.type.shape[-1]
    assert isinstance(k, int)
    given = [weight(builder, drawn(n, k, seed=seed, scale=k**-0.5).to(x.type.dtype))]
    if bias:
        given.append(builder.constant(drawn(n, seed=seed + 1, scale=0.1).to(x.type.dtype)))
    y: Value = Linear()(x, *given)
    return y


def inputs(*types: TensorType) -> tuple[Builder, list[Value]]:
    builder = Builder()
    return builder, [builder.input(t) for t in types]


def rounded(graph: Graph, given: Sequence[Tensor], channels: bool = True) -> Graph:
    """The graph with float8 pairs around the operands of linear layers and attention, by the largest numbers that they get."""
    largest = _largest(graph, given)
    with Builder(graph.ranges) as builder:
        now: dict[Value, Value] = {v: builder.input(v.type, v.name) for v in graph.inputs}
        now.update({v: builder.constant(t, v.name) for v, t in graph.constants.items()})
        pairs: dict[Value, Value] = {}  # one for all users

        def rounded_value(old: Value) -> Value:
            if old not in pairs:
                pairs[old] = pair(builder, now[old], largest[old] / GREATEST)
            return pairs[old]

        for node in graph.nodes:
            operands, op = [now[v] for v in node.inputs], node.op
            if isinstance(op, Linear) and node.inputs[1] in graph.constants:
                operands[0] = rounded_value(node.inputs[0])
                operands[1] = weight(builder, graph.constants[node.inputs[1]], channels)
            elif isinstance(op, Attention):
                operands[:3] = map(rounded_value, node.inputs[:3])
                op = Attention(op.scale, op.causal, FLOAT8)
            made: Any = op(*operands)
            now.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        return builder.finish([now[v] for v in graph.outputs])


def _largest(graph: Graph, given: Sequence[Tensor]) -> dict[Value, float]:
    """The largest magnitude of every floating value."""
    known: dict[Value, Tensor] = {**dict(zip(graph.inputs, given, strict=True)), **graph.constants}
    env = bind_symbols(graph, given)
    for node in graph.nodes:
        _run(node, known, env)
    return {v: max(float(t.float().abs().max()), 1e-6) for v, t in known.items() if t.is_floating_point()}


def _run(node: Node, known: dict[Value, Tensor], env: dict[str, int]) -> None:
    op: Any = node.op.bound(env)
    made = op.reference(*(known[v] for v in node.inputs))
    known.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
