"""Linear layers."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import at_least_two
from torchsmith.backends.tensorrt.emitters.matmul import product
from torchsmith.ops.linear import Linear


@emitter(Linear)
def linear(e: Emission, op: Linear, x: Any, weight: Any, bias: Any | None = None) -> Any:
    y = product(e, at_least_two(e, x), weight, transposed=True)
    y = y if bias is None else e.binary("SUM", y, bias)
    return e.shaped(y, e.node.outputs[0].type.shape) if len(x.shape) == 1 else y
