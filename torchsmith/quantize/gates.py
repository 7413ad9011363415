"""Squeeze-and-excite: small layers on pooled data make a gate, which scales whole channels."""

from __future__ import annotations

from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.lower.editing import argument
from torchsmith.quantize.weighted import COMMUTING, CONVOLUTIONS, POINTWISE, POOLING, Layer, aten, layer_of


def gates_of(program: ExportedProgram, weights: set[str]) -> set[fx.Node]:
    """The layers between a pooling and a product that scales whole channels by what comes out."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.target is not aten.mul.Tensor:
            continue
        for gate, other in (node.args[:2], node.args[1::-1]):
            if isinstance(gate, fx.Node) and isinstance(other, fx.Node) and _is_per_channel(gate, other):
                found |= _back_to_pooling(gate, weights)
    return found


def scaled_by_gate(layer: Layer) -> fx.Node | None:
    """What a gate scales, channel by channel, for a 1×1 convolution alone; None where there is no gate."""
    scaled, weight = layer.x, layer.weight.meta["val"]
    if layer.node.target not in CONVOLUTIONS or scaled.target is not aten.mul.Tensor or len(scaled.users) != 1:
        return None
    if any(size != 1 for size in weight.shape[2:]) or argument(layer.node, "groups") != 1:
        return None
    gate, wide = scaled.args[:2]
    for one, other in ((gate, wide), (wide, gate)):
        if isinstance(one, fx.Node) and isinstance(other, fx.Node) and _is_per_channel(one, other):
            return other
    return None


def _is_per_channel(gate: fx.Node, other: fx.Node) -> bool:
    small, large = gate.meta["val"], other.meta["val"]
    return (
        isinstance(small, Tensor)
        and isinstance(large, Tensor)
        and 2 < small.dim() == large.dim()
        and all(size == 1 for size in small.shape[2:])
        and any(size != 1 for size in large.shape[2:])
    )


def _back_to_pooling(node: fx.Node, weights: set[str]) -> set[fx.Node]:
    """The layers on the way from a node up to a pooling; none where the way leads elsewhere."""
    found: set[fx.Node] = set()
    while node.target not in POOLING:
        made = layer_of(node, weights)
        if made is not None:
            found.add(node)
            node = made.x
        elif node.target in POINTWISE or node.target in COMMUTING:
            node = node.args[0]  # type: ignore[assignment]
        else:
            return set()
    return found
