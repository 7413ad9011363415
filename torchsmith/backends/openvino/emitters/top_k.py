"""The greatest or smallest elements.

OpenVINO's order is wrong where there are NaNs. Its stable one is slow for many elements: 28 ms for eight rows of a thousand.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.top_k import TopK


@emitter(TopK)
def top_k(e: Emission, op: TopK, x: ov.Output) -> Any:
    if op.k == 0:
        raise Unsupported("OpenVINO's TopK takes at least one element")
    mode, wanted = "max" if op.largest else "min", x.get_element_type()
    # bools have an order, and TopK takes none
    x = ops.convert(x, "i32").output(0) if wanted == ov.Type.boolean else x
    values, indices = ops.topk(x, e.size(op.k), op.dim, mode, "value", "i64", stable=op.stable).outputs()
    return (ops.not_equal(values, e.number(0, values)) if wanted == ov.Type.boolean else values), indices
