"""Images sampled at given places.

TensorRT's documentation does not say to which pixel a place between two is rounded, nor what the cubic's coefficient is: they are
taken for those of ONNX's GridSample, which its parser makes this layer of, and so for PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ops.grid_sample import GridSample

MODES = {"bilinear": "LINEAR", "nearest": "NEAREST", "bicubic": "CUBIC"}
PADDINGS = {"zeros": "FILL", "border": "CLAMP", "reflection": "REFLECT"}


@emitter(GridSample)
def grid_sample(e: Emission, op: GridSample, x: Any, grid: Any) -> Any:
    given = e.node.inputs[0].type
    if given.rank != 4:
        raise Unsupported(f"TensorRT samples images of two dimensions at a grid, and here is {given}")
    # one type for both: the places' float32
    layer = e.network.add_grid_sample(e.to(x, torch.float32), e.to(grid, torch.float32))
    if layer is not None:
        layer.interpolation_mode = getattr(trt().InterpolationMode, MODES[op.mode])
        layer.sample_mode = getattr(trt().SampleMode, PADDINGS[op.padding_mode])
        layer.align_corners = op.align_corners
    return e.to(e.layer(layer), given.dtype)
