"""Second moments of what layers take, rounded; how their weights are rounded by them, and what their biases then lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from torchsmith.quantize.columns import Columns
from torchsmith.quantize.rounding import nearest, rounded
from torchsmith.quantize.weighted import Layer

# Sums of so many columns are rounded by their moments; a Cholesky factor of more takes longer than what it is for.
MOST_COLUMNS = 5120
_BYTES = 1 << 30  # of moments that are kept at once
_LEAST_ROWS = 256  # of a call that count; twice as many as there are columns, where that is more

Round = Callable[[Tensor], Tensor]


@dataclass
class Sums:
    """Over `count` rows of one input. lost: of the input as it is less the rounded one; first: of the rounded one; both are
    (groups, columns), float64. second: of its products, (groups, columns, columns), float32; None where columns are too many.
    """

    count: int
    lost: Tensor
    first: Tensor
    second: Tensor | None


class Moments:
    """Sums over calibration data for layers that are matrix products. grids: what rounds each layer's input."""

    def __init__(self, layers: Sequence[Layer], grids: Mapping[fx.Node, Round]) -> None:
        self.columns = {layer.node: made for layer in layers if (made := Columns.of(layer)) is not None}
        self.layers = {layer.node: layer for layer in layers if layer.node in self.columns}
        self.grids = grids
        self.sums: dict[Any, Sums] = {}
        self.generator = torch.Generator().manual_seed(0)

    def key(self, layer: Layer) -> tuple[Any, ...]:
        """Layers of one key share their sums: they take the same input in the same way."""
        return layer.x, layer.weight.meta["val"].shape[1:] if self.columns[layer.node].kernel else (), self.columns[layer.node]

    def look(self, node: fx.Node, value: Any, env: Mapping[fx.Node, Any]) -> None:
        if (layer := self.layers.get(node)) is None:
            return
        key = self.key(layer)
        first = next(other for other in self.layers.values() if self.key(other) == key)
        if first is layer:
            self._add(key, self._sampled(layer, env[layer.x]), self.grids[node])

    def _sampled(self, layer: Layer, x: Tensor) -> Tensor:
        """Some of the rows, evenly chosen at random."""
        wanted = max(_LEAST_ROWS, 2 * layer.terms)

        def choose(count: int) -> Tensor | None:
            return None if count <= wanted else torch.randperm(count, generator=self.generator)[:wanted].to(x.device)

        return self.columns[layer.node].inputs(x, choose).float()

    def _add(self, key: Any, rows: Tensor, grid: Round) -> None:
        given = grid(rows)
        one = given.new_ones(rows.shape[1])  # a product with it is many times as fast as a sum along this dimension
        lost, first = (one @ (rows - given)).double(), (one @ given).double()
        before = self.sums.get(key)
        if before is None:
            second = given.transpose(1, 2) @ given if rows.shape[2] <= MOST_COLUMNS else None
            self.sums[key] = Sums(rows.shape[1], lost, first, second)
            return
        before.count, before.lost, before.first = before.count + rows.shape[1], before.lost + lost, before.first + first
        if before.second is not None:
            before.second.baddbmm_(given.transpose(1, 2), given)

    def offsets(self, layer: Layer, weight: Tensor, steps: Tensor, greatest: int, shares: Tensor | None) -> Tensor | None:
        """How far the layer's whole numbers are from the nearest: int8, of the weight's shape. None where that is what they are.

        steps: of each output channel. shares: what the weight is multiplied by before it is rounded, and its inputs are divided by.
        """
        sums, columns = self.sums.get(self.key(layer)), self.columns[layer.node]
        if sums is None or sums.second is None:
            return None
        rows = columns.weights(weight.detach().float() if shares is None else weight.detach().float() * shares)
        steps = steps.reshape(rows.shape[:2])
        moments = sums.second / sums.count
        if shares is not None:
            moments = moments / (shares.reshape(-1, 1) * shares.reshape(1, -1))
        found = rounded(rows, steps, greatest, moments, sums.count)
        return columns.back((found - nearest(rows, steps, greatest)).to(torch.int8), weight)

    def correction(self, layer: Layer, weight: Tensor, made: Tensor) -> tuple[float, ...] | None:
        """What each output channel lacks on average. weight, made: before and after rounding."""
        sums, columns = self.sums.get(self.key(layer)), self.columns[layer.node]
        if sums is None:
            return None
        exact, given = (columns.weights(w.detach()).double() for w in (weight, made))
        lost, first = sums.lost / sums.count, sums.first / sums.count
        means = exact @ lost[..., None] + (exact - given) @ first[..., None]
        return tuple(means.flatten().tolist())


def in_parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """The layers, as many together as the memory for their moments allows."""
    part, size = list[Layer](), 0
    for layer in layers:
        own = _bytes(layer)
        if part and size + own > _BYTES:
            yield part
            part, size = [], 0
        part.append(layer)
        size += own
    if part:
        yield part


def _bytes(layer: Layer) -> int:
    columns = Columns.of(layer)
    if columns is None:
        return 0
    count = layer.terms
    return 4 * columns.groups * count**2 if count <= MOST_COLUMNS else 0
