"""Group and instance normalisation, in float32."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import wide
from torchsmith.backends.tensorrt.emitters.layer_norm import normalized
from torchsmith.ir.dim import floordiv, product
from torchsmith.ops.group_norm import GroupNorm


@emitter(GroupNorm)
def group_norm(e: Emission, op: GroupNorm, x: Any, weight: Any | None = None, bias: Any | None = None) -> Any:
    given = e.node.inputs[0].type
    shape, rank, channels = given.shape, given.rank, given.shape[1]
    per_channel = (1, channels, *[1] * (rank - 2))
    x = wide(e, x)
    if op.groups == 1:
        y = normalized(e, x, range(1, rank), op.eps, per_channel, weight, bias)
    elif rank > 2 and op.groups == channels:
        y = normalized(e, x, range(2, rank), op.eps, per_channel, weight, bias)
    elif rank > 2 and hasattr(e.network, "add_normalization_v2"):
        y = normalized(e, x, range(2, rank), op.eps, per_channel, weight, bias, op.groups)
    else:
        # the first version of the layer has a weight and a bias for each group alone
        members = floordiv(product(shape[1:]), op.groups)
        y = e.shaped(normalized(e, e.shaped(x, (shape[0], op.groups, members)), [2], op.eps, (1, 1, 1)), shape)
        y = y if weight is None else e.binary("PROD", y, e.shaped(wide(e, weight), per_channel))
        y = y if bias is None else e.binary("SUM", y, e.shaped(wide(e, bias), per_channel))
    return e.to(y, given.dtype)
