"""Images sampled at given places.

Against PyTorch in float32, OpenVINO 2026.4's kernels (AVX-512, AVX2, SSE4.1) agree in every mode and padding, at pixels, between
them and outside, but for what is refused or mended here, and for samples next to an infinity in x, which may come out as NaN.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.errors import Unsupported
from torchsmith.ops.grid_sample import GridSample

# Beyond it a place has no fraction, and times a size it may be infinite.
_FAR = 1e30


@emitter(GridSample)
def grid_sample(e: Emission, op: GridSample, x: ov.Output, grid: ov.Output) -> Any:
    refuse_empty(e)
    given = e.node.inputs[0].type
    if given.rank != 4:
        raise Unsupported(f"OpenVINO samples images of two dimensions at a grid, and here is {given}")
    if (op.mode, op.padding_mode, op.align_corners) == ("nearest", "reflection", False):
        raise Unsupported("OpenVINO rounds places to the nearest pixel before it reflects them, PyTorch after: ties differ")
    wanted = x.get_element_type()
    x, grid = (t if wanted == ov.Type.f32 else ops.convert(t, "f32").output(0) for t in (x, grid))
    grid = grid if op.mode == "bicubic" else _finite(e, grid, op.padding_mode)
    how = {"mode": op.mode, "padding_mode": op.padding_mode, "align_corners": op.align_corners}
    y = ops.grid_sample(x, grid, how)
    return y if wanted == ov.Type.f32 else ops.convert(y, wanted)


def _finite(e: Emission, grid: ov.Output, padding: str) -> ov.Output:
    """NaN and infinities at the pixels where PyTorch has them; OpenVINO has NaN there."""
    first, last = e.number(-1.0, grid), e.number(1.0, grid)
    if padding == "border":
        return ops.select(ops.less(first, grid), ops.minimum(grid, last), first).output(0)
    if padding == "reflection":
        return ops.select(ops.less(ops.absolute(grid), e.number(_FAR, grid)), grid, first).output(0)
    return grid
