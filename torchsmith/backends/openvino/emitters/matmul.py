"""Products of matrices."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.backends.openvino.emitters._empty import refuse_empty
from torchsmith.errors import Unsupported
from torchsmith.ops.matmul import MatMul


@emitter(MatMul)
def matmul(e: Emission, op: MatMul, a: ov.Output, b: ov.Output) -> Any:
    refuse_empty(e)
    if not a.get_element_type().is_real():
        raise Unsupported("OpenVINO's CPU engine computes products of integer matrices in float32, which rounds above 2^24")
    return ops.matmul(a, b, False, False)
