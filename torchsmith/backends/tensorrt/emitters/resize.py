"""Images at another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim
from torchsmith.ops.resize import Resize

# interpolation, how a place in the result is found in x, how it is rounded there
MODES = {
    "nearest": ("NEAREST", "ASYMMETRIC", "FLOOR"),
    "nearest-exact": ("NEAREST", "HALF_PIXEL", "HALF_UP"),
    "linear": ("LINEAR", "HALF_PIXEL", "FLOOR"),
    "cubic": ("CUBIC", "HALF_PIXEL", "FLOOR"),
}


@emitter(Resize)
def resize(e: Emission, op: Resize, x: Any) -> Any:
    given = e.node.inputs[0].type
    corners = op.align_corners and op.mode in ("linear", "cubic")
    if op.scales and not corners and not all(map(_by_sizes, given.shape[2:], op.size, op.scales)):
        return _by_taps(e, op, x)
    mode, places, rounding = MODES[op.mode]
    module, shape = trt(), e.node.outputs[0].type.shape
    sizes = None if e.node.outputs[0].type.is_static else e.sizes(shape)
    layer = e.network.add_resize(x)
    layer.resize_mode = getattr(module.InterpolationMode, mode)
    layer.coordinate_transformation = getattr(module.ResizeCoordinateTransformation, "ALIGN_CORNERS" if corners else places)
    layer.nearest_rounding = getattr(module.ResizeRoundMode, rounding)
    # a single pixel is the first one where corners stay in place
    layer.selector_for_single_pixel = module.ResizeSelector.UPPER if corners else module.ResizeSelector.FORMULA
    layer.cubic_coeff = -0.75
    if sizes is None:
        layer.shape = shape
    else:
        layer.set_input(1, sizes)
    return e.layer(layer)


def _by_sizes(size: Dim, wanted: Dim, scale: float) -> bool:
    """Whether the factor is the ratio of the sizes, by which TensorRT finds places."""
    if isinstance(size, int) and isinstance(wanted, int):
        return size * scale == wanted
    return scale == int(scale)


def _by_taps(e: Emission, op: Resize, x: Any) -> Any:
    """Per dimension, the elements that each of the result's is made of are gathered, weighted and added."""
    given = e.node.inputs[0].type
    assert op.scales is not None, op
    x = e.to(x, torch.float32)
    for axis, (size, wanted, scale) in enumerate(zip(given.shape[2:], op.size, op.scales, strict=True), 2):
        if not isinstance(size, int) or not isinstance(wanted, int):
            raise Unsupported(
                f"a resize of {size} elements by {scale}, where TensorRT finds places by the ratio of sizes: they must be known"
            )
        indices, weights = _taps(op, size, wanted, scale)
        parts = []
        for index, weight in zip(indices, weights, strict=True):
            part = e.layer(e.network.add_gather(x, e.constant(index), axis))
            if not bool((weight == 1).all()):
                along = [-1 if d == axis else 1 for d in range(given.rank)]
                part = e.binary("PROD", part, e.constant(weight.reshape(along)))
            parts.append(part)
        x = parts[0]
        for part in parts[1:]:
            x = e.binary("SUM", x, part)
    return e.to(x, given.dtype)


def _taps(op: Resize, size: int, wanted: int, scale: float) -> tuple[Tensor, Tensor]:
    """Indices and weights, each (taps, wanted), read off what the op makes of every unit vector of one dimension."""
    units = torch.eye(size).reshape(1, size, 1, size)
    alone = replace(op, size=(1, wanted), scales=(1.0, scale))
    matrix = alone.reference(units).reshape(size, wanted)
    taps = int((matrix != 0).sum(0).max())
    indices = matrix.abs().topk(taps, 0).indices
    return indices, matrix.gather(0, indices)
