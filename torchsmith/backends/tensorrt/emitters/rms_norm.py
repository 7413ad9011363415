"""Root-mean-square normalisation, in float32."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import like, reduced, wide
from torchsmith.ops.rms_norm import RmsNorm


@emitter(RmsNorm)
def rms_norm(e: Emission, op: RmsNorm, x: Any, weight: Any | None = None) -> Any:
    given = e.node.inputs[0].type
    x = wide(e, x)
    squares = reduced(e, "AVG", e.binary("PROD", x, x), range(given.rank - op.dims, given.rank), True)
    root = e.unary("SQRT", e.binary("SUM", squares, like(e, op.eps, squares)))
    y = e.binary("PROD", x, e.unary("RECIP", root))
    return e.to(y if weight is None else e.binary("PROD", y, wide(e, weight)), given.dtype)
