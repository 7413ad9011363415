"""Elements picked by index."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.library import trt
from torchsmith.ops.gather import Gather, GatherElements


@emitter(Gather)
def gather(e: Emission, op: Gather, x: Any, index: Any) -> Any:
    return e.layer(e.network.add_gather(x, index, op.dim))


@emitter(GatherElements)
def gather_elements(e: Emission, op: GatherElements, x: Any, index: Any) -> Any:
    layer = e.network.add_gather_v2(x, index, trt().GatherMode.ELEMENT)
    if layer is not None:
        layer.axis = op.dim
    return e.layer(layer)
