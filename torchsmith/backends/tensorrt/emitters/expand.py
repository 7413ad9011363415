"""Broadcasting and repetition."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.ir.dim import same
from torchsmith.ops.expand import Expand, Tile


@emitter(Expand)
def expand(e: Emission, op: Expand, x: Any) -> Any:
    rank = len(op.shape)
    have = e.node.inputs[0].type.shape
    sizes = (1,) * (rank - len(have)) + have
    stride = [1 if same(size, wanted) else 0 for size, wanted in zip(sizes, op.shape, strict=True)]
    return e.sliced(e.rank(x, rank), (0,) * rank, op.shape, stride)


@emitter(Tile)
def tile(e: Emission, op: Tile, x: Any) -> Any:
    return e.sliced(x, (0,) * len(op.repeats), e.node.outputs[0].type.shape, mode="WRAP")
