"""Images at another size."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.resize import Resize

# interpolation, how a place in the result is found in x, how it is rounded there
MODES = {
    "nearest": ("nearest", "asymmetric", "floor"),
    "nearest-exact": ("nearest", "half_pixel", "round_prefer_ceil"),
    "linear": ("linear_onnx", "pytorch_half_pixel", "floor"),
    "cubic": ("cubic", "pytorch_half_pixel", "floor"),
}


@emitter(Resize)
def resize(e: Emission, op: Resize, x: ov.Output) -> Any:
    mode, places, rounding = MODES[op.mode]
    if op.mode in ("linear", "cubic"):
        places = "align_corners" if op.align_corners else "half_pixel" if op.mode == "cubic" or op.scales else places
    axes = e.ints(range(2, 2 + len(op.size)))
    if op.scales is None:
        by, how = e.sizes(op.size), "sizes"
    else:
        by, how = ops.constant(np.array(op.scales, dtype=np.float32)).output(0), "scales"
    return ops.interpolate(
        x, by, mode, how, coordinate_transformation_mode=places, nearest_mode=rounding, cube_coeff=-0.75, axes=axes
    )
