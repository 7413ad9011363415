"""What TensorRT's resize layer means: along each axis, a matrix of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def resized(raw: Any, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """x: floating, any rank; the layer downcast; sizes: the output's. Axes whose size stays are left alone."""
    mode = raw.resize_mode.name
    for axis, (length, wanted) in enumerate(zip(x.shape, sizes, strict=True)):
        if length != wanted:
            at = positions(raw, length, wanted)
            matrix = {"NEAREST": nearest, "LINEAR": linear, "CUBIC": cubic}[mode](raw, at, length).to(x.dtype)
            x = torch.tensordot(x, matrix, ([axis], [1])).movedim(-1, axis)
    return x


def positions(raw: Any, length: int, wanted: int) -> Tensor:
    """Where each element of the output lies in the input, in float64."""
    to = torch.arange(wanted, dtype=torch.float64)
    if wanted == 1 and raw.selector_for_single_pixel.name == "UPPER":
        return torch.zeros(1, dtype=torch.float64)
    name = raw.coordinate_transformation.name
    if name == "ALIGN_CORNERS":
        return to * ((length - 1) / (wanted - 1)) if wanted > 1 else to * 0
    if name == "ASYMMETRIC":
        return to * length / wanted
    return (to + 0.5) * length / wanted - 0.5


def nearest(raw: Any, at: Tensor, length: int) -> Tensor:
    rounded = {
        "HALF_UP": (at + 0.5).floor(),
        "HALF_DOWN": (at - 0.5).ceil(),
        "FLOOR": at.floor(),
        "CEIL": at.ceil(),
    }[raw.nearest_rounding.name]
    return _matrix([(rounded, torch.ones_like(at))], length)


def linear(raw: Any, at: Tensor, length: int) -> Tensor:
    at = at.clamp(0, length - 1)
    low = at.floor()
    return _matrix([(low, 1 - (at - low)), (low + 1, at - low)], length)


def cubic(raw: Any, at: Tensor, length: int) -> Tensor:
    """Keys' kernel with the layer's coefficient; elements outside are those at the border, or left out."""
    a, low = raw.cubic_coeff, at.floor()
    taps = []
    for tap in (-1, 0, 1, 2):
        d = (at - low - tap).abs()
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = torch.where(d <= 1, near, far)
        if raw.exclude_outside:
            weight = torch.where((low + tap >= 0) & (low + tap < length), weight, 0.0)
        taps.append((low + tap, weight))
    total = sum(weight for _, weight in taps)
    return _matrix([(index, weight / total) for index, weight in taps], length)


def _matrix(taps: Sequence[tuple[Tensor, Tensor]], length: int) -> Tensor:
    """(outputs, length): the weights of each output's taps, those outside put at the border."""
    matrix = torch.zeros(len(taps[0][0]), length, dtype=torch.float64)
    for index, weight in taps:
        matrix.scatter_add_(1, index.clamp(0, length - 1).long()[:, None], weight[:, None])
    return matrix
