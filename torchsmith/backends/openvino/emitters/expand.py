"""Broadcasting and repetition."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.expand import Expand, Tile


@emitter(Expand)
def expand(e: Emission, op: Expand, x: ov.Output) -> Any:
    return ops.broadcast(x, e.sizes(op.shape))


@emitter(Tile)
def tile(e: Emission, op: Tile, x: ov.Output) -> Any:
    return ops.tile(x, e.sizes(op.repeats))
