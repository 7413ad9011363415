"""The greatest elements of windows, one dimension after the other, where TensorRT has no layer for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce as fold
from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission
from torchsmith.backends.tensorrt.emitters.create import counted
from torchsmith.ir.dim import Shape, product

# One element of each window along a dimension. It is given a tensor, and what stands where the window leaves it.
Take = Callable[[Any, Any], Any]


def greatest(e: Emission, x: Any, takes: Sequence[Sequence[Take]]) -> Any:
    """takes: per dimension, one for each element of a window."""
    fill = lowest(e)
    for along in takes:
        x = fold(lambda a, b: e.binary("MAX", a, b), [take(x, fill) for take in along])
    return x


def greatest_places(e: Emission, x: Any, takes: Sequence[Sequence[Take]]) -> Any:
    """Where they stand, counted over x's dimensions from the third on, int64; of equal ones, where the first does."""
    places, fill, outside = _places(e), lowest(e), e.number(-1, torch.int64)
    for along in takes:
        best, where = along[0](x, fill), along[0](places, outside)
        for take in along[1:]:
            other, there = take(x, fill), take(places, outside)
            none_yet = e.binary("LESS", where, e.number(0, torch.int64, len(where.shape)))
            better = e.binary("OR", e.binary("GREATER", other, best), none_yet)
            best, where = (e.layer(e.network.add_select(better, a, b)) for a, b in ((other, best), (there, where)))
        x, places = best, where
    return places


def lowest(e: Emission) -> Any:
    """A number, of no dimensions, below which there is none of the node's first input's dtype."""
    dtype = e.node.inputs[0].type.dtype
    if dtype.is_floating_point:
        return e.number(float("-inf"), dtype)
    least = torch.iinfo(dtype).min
    # a constant of int8 is one that is to be dequantized
    return e.to(e.number(least, torch.int32), dtype) if dtype == torch.int8 else e.number(least, dtype)


def _places(e: Emission) -> Any:
    """Every element's place among the spatial ones, in x's shape."""
    shape: Shape = e.node.inputs[0].type.shape
    numbers = e.shaped(counted(e, e.size(product(shape[2:]))), (1, 1, *shape[2:]))
    return e.sliced(numbers, (0,) * len(shape), shape, (0, 0, *[1] * (len(shape) - 2)))
