"""Channels of a value, made as large as each other before the value is rounded; the weights behind it take the difference over.

In transformers a few channels of what a norm or GELU gives are some twenty times as large as the others, which one scale for all
leaves few steps. Source: G. Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language
models", 2022; here each value's exponent is the one of the least expected error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from torchsmith.convert import parameters_of
from torchsmith.debug.progress import progress_of
from torchsmith.quantize.batches import Batch
from torchsmith.quantize.observe import Observed
from torchsmith.quantize.placement import Placement
from torchsmith.quantize.weighted import Layer

_EXPONENTS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)  # of the inputs' magnitudes; the weights' have the rest
_WEIGHT_ERROR = 0.25  # of rounding to the nearest, that rounding by second moments leaves
_WORTHWHILE = 0.63  # of the expected squared error; what gains less than 2 dB stays as it is


def shares_by(program: ExportedProgram, placement: Placement, batches: Sequence[Batch]) -> dict[str, tuple[float, ...]]:
    """Shares of the channels of the values that gain by them, by the values' names; see `Calibration.shares`.

    Those are inputs of linear layers only, of three dimensions and more: rows of tokens. What is quantized to fp8 is left: a
    float's error goes with its own magnitude, and not with the largest channel's.
    """
    takers = _takers(placement)
    if not takers:
        return {}
    seen = _Channels(takers)
    observed = Observed(program, seen.look)
    with progress_of("looking at channels") as progress:
        progress.expect(len(batches))
        for batch in batches:
            observed.over(batch)
            progress.advance()
    tensors, found = parameters_of(program), {}
    for point in placement.points:
        if point.node in takers and point.node in seen.greatest:
            rows = [tensors[layer.weight.name].detach().float().movedim(layer.axis, 0) for layer in takers[point.node]]
            squares = seen.squares[point.node] / len(batches)
            shares = shares_of_channels(seen.greatest[point.node], squares, torch.cat(rows), seen.rows[point.node])
            if shares is not None:
                found[point.name] = tuple(shares.tolist())
    return found


def _takers(placement: Placement) -> dict[fx.Node, list[Layer]]:
    """The linear layers behind each value that nothing else takes in int8."""
    layers = {layer.node: layer for layer in placement.layers}
    groups = [point.group for point in placement.points]
    shared = [layer.weight for layer in placement.layers]
    found: dict[fx.Node, list[Layer]] = {}
    for point in (point for point in placement.points if point.dtype == torch.int8):
        behind = [layers[user] for user in point.users if user in layers]
        plain = all(
            layer.x is point.node and layer.weight.meta["val"].dim() == 2 and shared.count(layer.weight) == 1 for layer in behind
        )
        if len(behind) == len(point.users) and plain and groups.count(point.group) == 1 and point.node.meta["val"].dim() >= 3:
            found[point.node] = behind
    return found


class _Channels:
    """Of values, by the last dimension: greatest magnitudes, and mean squares, summed over calls; and how many rows there were."""

    def __init__(self, nodes: Mapping[fx.Node, Any]) -> None:
        self.nodes = nodes
        self.greatest: dict[fx.Node, Tensor] = {}
        self.squares: dict[fx.Node, Tensor] = {}
        self.rows: dict[fx.Node, int] = {}

    def look(self, node: fx.Node, value: Any, env: Mapping[fx.Node, Any]) -> None:
        if node not in self.nodes:
            return
        rows = value.detach().reshape(-1, value.shape[-1]).float()
        greatest, squares = rows.abs().amax(0), rows.square().mean(0)
        self.greatest[node] = torch.maximum(greatest, self.greatest.get(node, greatest))
        self.squares[node] = squares if node not in self.squares else self.squares[node] + squares
        self.rows[node] = self.rows.get(node, 0) + len(rows)


def shares_of_channels(greatest: Tensor, squares: Tensor, weight: Tensor, rows: int) -> Tensor | None:
    """What channels are divided by; None where that gains little. greatest, squares: (K,), of so many rows. weight: (N, K)."""
    largest = weight.abs().amax(0)
    if not bool(torch.isfinite(greatest).all() & torch.isfinite(largest).all()) or not bool(greatest.any() & largest.any()):
        return None
    inputs, weights = (magnitudes.clamp(min=float(magnitudes.max()) * 1e-4) for magnitudes in (greatest, largest))
    ones = torch.ones_like(inputs)
    plain, cut = _expected_error(ones, greatest, squares, weight), _cut_off(ones, greatest, weight, rows)
    tried = [inputs**exponent / weights ** (1 - exponent) for exponent in _EXPONENTS]
    errors = [
        _expected_error(shares, greatest, squares, weight) + max(0.0, _cut_off(shares, greatest, weight, rows) - cut)
        for shares in tried
    ]
    best = min(range(len(tried)), key=errors.__getitem__)
    return tried[best] / tried[best].log().mean().exp() if errors[best] < _WORTHWHILE * plain else None


def _expected_error(shares: Tensor, greatest: Tensor, squares: Tensor, weight: Tensor) -> float:
    """Twelve times the squared error of all results, of rounding inputs and weights to steps of a 127th of the greatest."""
    step = (greatest / shares).max() / 127
    of_inputs = ((step * shares).square() * weight.square().sum(0)).sum()
    steps = (weight * shares).abs().amax(1) / 127
    of_weights = steps.square().sum() * (squares / shares.square()).sum()
    return float(of_inputs + _WEIGHT_ERROR * of_weights)


def _cut_off(shares: Tensor, greatest: Tensor, weight: Tensor, rows: int) -> float:
    """In the same measure, of inputs beyond the greatest, as other rows than those seen have some: the fewer rows, the more.

    As of normal distributions whose greatest of so many is what was seen: what exceeds r times that is so rare, and so large.
    """
    room = (greatest / shares).max() * shares / greatest.clamp(min=1e-30)
    beyond = (rows + 1.0) ** -room.clamp(1, 1e3).square()
    excess = greatest / (2 * math.log(rows + 2))
    return 24 * float((beyond * excess.square() * weight.square().sum(0)).sum())
