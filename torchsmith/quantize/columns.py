"""A layer as the product of a matrix of inputs and one of weights: convolutions too, with a column for each tap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith.lower.editing import argument
from torchsmith.quantize.weighted import Layer, each

aten = torch.ops.aten


@dataclass(frozen=True)
class Columns:
    """How inputs and weights of a layer become matrices.

    kernel: the taps along each dimension; none for products. stride, padding, dilation: as long; padding before and after.
    groups: of channels that are multiplied by themselves. axis: the weight's dimension of output channels.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    axis: int

    @staticmethod
    def of(layer: Layer) -> Columns | None:
        """None for transposed convolutions."""
        node, weight = layer.node, layer.weight.meta["val"]
        if "conv" not in str(node.target):
            return Columns((), (), (), (), 1, layer.axis)
        if layer.axis != 0:
            return None
        kernel = tuple(int(size) for size in weight.shape[2:])
        stride, dilation = (each(argument(node, name), len(kernel)) for name in ("stride", "dilation"))
        return Columns(kernel, stride, _padding(argument(node, "padding"), kernel, dilation), dilation, argument(node, "groups"), 0)

    def inputs(self, x: Tensor, choose: Callable[[int], Tensor | None] = lambda count: None) -> Tensor:
        """x: what the layer takes. Gives (groups, rows, columns): a row for each number that each output channel has.

        choose: of so many rows, which to give, as int64 on x's device; None for all, by batch and place. The others are not made.
        """
        if not self.kernel:
            rows = x.reshape(1, -1, x.shape[-1])
            chosen = choose(rows.shape[1])
            return rows if chosen is None else rows[:, chosen]
        rank = len(self.kernel)
        x = x if x.dim() == rank + 2 else x[None]
        x = torch.nn.functional.pad(x, [size for pair in reversed(self.padding) for size in pair])
        for dim, (taps, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + dim, (taps - 1) * gap + 1, step)[..., ::gap]
        x = x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])  # a view: (batch, groups, channels, *places, *taps)
        places = (x.shape[0], *x.shape[3 : 3 + rank])
        chosen = choose(math.prod(places))
        if chosen is None:
            return x.permute(1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank)).flatten(1, 1 + rank).flatten(2)
        batch, *place = torch.unravel_index(chosen, places)
        picked: tuple[Tensor | slice, ...] = (batch, slice(None), slice(None), *place)
        return x[picked].transpose(0, 1).flatten(2)

    def weights(self, weight: Tensor) -> Tensor:
        """(groups, output channels of one, columns)."""
        rows = weight.movedim(self.axis, 0)
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def back(self, rows: Tensor, weight: Tensor) -> Tensor:
        """What `weights` gave, in the weight's shape."""
        return rows.reshape(weight.movedim(self.axis, 0).shape).movedim(0, self.axis)


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if isinstance(given, str):
        whole = [(taps - 1) * gap if given == "same" else 0 for taps, gap in zip(kernel, dilation, strict=True)]
        return tuple((size // 2, size - size // 2) for size in whole)
    return tuple((size, size) for size in each(given, len(kernel)))
