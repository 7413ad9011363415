"""Elements picked by index."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.gather import Gather, GatherElements


@emitter(Gather)
def gather(e: Emission, op: Gather, x: ov.Output, index: ov.Output) -> Any:
    return ops.gather(x, index, e.ints([op.dim]))


@emitter(GatherElements)
def gather_elements(e: Emission, op: GatherElements, x: ov.Output, index: ov.Output) -> Any:
    return ops.gather_elements(x, index, op.dim)
