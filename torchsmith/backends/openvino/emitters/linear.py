"""Linear layers."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.ops.linear import Linear
from torchsmith.ops.matmul import MatMul


@emitter(Linear)
def linear(e: Emission, op: Linear, x: ov.Output, weight: ov.Output, bias: ov.Output | None = None) -> Any:
    refuse_empty(e)
    tensor = e.graph.constants.get(e.node.inputs[1])
    if tensor is not None and any(isinstance(n.op, MatMul) and e.node.inputs[1] in n.inputs for n in e.graph.nodes):
        # OpenVINO 2026.4 packs a square matrix once, whichever of the two products with it comes first
        weight = e.constant(tensor.clone())
    y = ops.matmul(x, weight, False, True)
    return y if bias is None else ops.add(y, bias)
