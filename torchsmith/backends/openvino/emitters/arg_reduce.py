"""Where the greatest or the smallest element is. With a NaN there, the index is another one than PyTorch's."""

from __future__ import annotations

from typing import Any

import openvino as ov
import openvino.opset15 as ops

from torchsmith.backends.openvino.emit import Emission, emitter
from torchsmith.ops.arg_reduce import ArgReduce


@emitter(ArgReduce)
def arg_reduce(e: Emission, op: ArgReduce, x: ov.Output) -> Any:
    # only a stable TopK gives the first one of equals
    found = ops.topk(x, ops.constant(1, ov.Type.i64), op.dim, op.function, "value", "i64", stable=True).output(1)
    return found if op.keepdim else ops.squeeze(found, e.ints([op.dim]))
