"""Products of matrices."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.tensorrt.emit import Emission, emitter
from torchsmith.backends.tensorrt.emitters._pieces import is_float
from torchsmith.backends.tensorrt.library import trt
from torchsmith.errors import Unsupported
from torchsmith.ops.matmul import MatMul


def product(e: Emission, a: Any, b: Any, transposed: bool = False) -> Any:
    """a @ b, or a @ b with b's last two dimensions exchanged; what stands before broadcasts."""
    kinds = trt().MatrixOperation
    rank = max(len(a.shape), len(b.shape))
    second = kinds.TRANSPOSE if transposed else kinds.NONE
    return e.layer(e.network.add_matrix_multiply(e.rank(a, rank), kinds.NONE, e.rank(b, rank), second))


@emitter(MatMul)
def matmul(e: Emission, op: MatMul, a: Any, b: Any) -> Any:
    if not is_float(a):
        raise Unsupported("TensorRT multiplies matrices of floating numbers alone; cast integers before it")
    return product(e, a, b)
