"""Batch normalisation, in float32."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import like, wide
from torchsmith.ops.batch_norm import BatchNorm


@emitter(BatchNorm)
def batch_norm(e: Emission, op: BatchNorm, x: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
    given = e.node.inputs[0].type
    per_channel = (1, given.shape[1], *[1] * (given.rank - 2))
    weight, bias, mean, var = (e.shaped(wide(e, p), per_channel) for p in (weight, bias, mean, var))
    deviation = e.unary("SQRT", e.binary("SUM", var, like(e, op.eps, var)))
    y = e.binary("PROD", e.binary("SUB", wide(e, x), mean), e.binary("DIV", weight, deviation))
    return e.to(e.binary("SUM", y, bias), given.dtype)
