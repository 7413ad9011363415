"""Elements put by index."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.errors import Unsupported
from torchsmith.ops.scatter import ScatterElements, ScatterRows

REDUCTIONS = {"none": "none", "sum": "sum", "prod": "prod", "amax": "max", "amin": "min"}


@emitter(ScatterElements)
def scatter_elements(e: Emission, op: ScatterElements, x: ov.Output, index: ov.Output, values: ov.Output) -> Any:
    return ops.scatter_elements_update(x, index, values, e.ints([op.dim]), REDUCTIONS[op.reduction], True)


@emitter(ScatterRows)
def scatter_rows(e: Emission, op: ScatterRows, x: ov.Output, index: ov.Output, values: ov.Output) -> Any:
    if x.get_element_type() == ov.Type.boolean and op.accumulate:
        raise Unsupported("OpenVINO does not add booleans by index")
    where = ops.unsqueeze(index, e.ints([1]))
    return ops.scatter_nd_update(x, where, values, "sum" if op.accumulate else "none")
