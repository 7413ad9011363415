"""cuSPARSELt's own interface, for what PyTorch's op of it leaves out: a residual and relu in the product's kernel.

    out = activation(scale * (rows @ weight.T) + residual + bias)

The library is the one that PyTorch has loaded. Each call describes its matrices anew, as PyTorch's does, and an engine calls once a
graph. It refuses gelu after products of 16 bits (0.8.0, H200). Source: cusparseLt.h of cuSPARSELt 0.8.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import torch
from torch import Tensor

FILE = "libcusparseLt.so.0"
OLDEST = 602  # from here on its enumerations have these numbers
_STRUCT_BYTES = 16 << 10  # of each of its structures; they have 512, and had 11,024
_ALIGNMENT = 16

# cudaDataType_t
TYPES = {torch.float32: 0, torch.float16: 2, torch.int8: 3, torch.int32: 10, torch.bfloat16: 14}
# cusparseComputeType
COMPUTE = {torch.int8: 0, torch.float16: 2, torch.bfloat16: 2}
# cusparseOrder_t, cusparseOperation_t
COLUMNS, ROWS = 1, 2
PLAIN, TRANSPOSED = 0, 1
# cusparseLtMatmulDescAttribute_t
ACTIVATIONS = {"relu": 0}
ALPHA_IS_VECTOR, BIAS_POINTER = 5, 8

_of_thread = threading.local()


@functools.cache
def library() -> Any:
    """The library; None where PyTorch has none, or one that is too old."""
    version = torch.backends.cusparselt.version() if getattr(torch._C, "_has_cusparselt", False) else None
    if version is None or version < OLDEST:
        return None
    try:
        return ctypes.CDLL(FILE)
    except OSError:
        return None


class _Struct:
    """Memory for one of the library's opaque structures."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(_STRUCT_BYTES + _ALIGNMENT)
        first = ctypes.addressof(self._memory)
        self.address = ctypes.c_void_p(-(-first // _ALIGNMENT) * _ALIGNMENT)


def _call(name: str, *arguments: Any) -> None:
    status = getattr(library(), name)(*arguments)
    if status != 0:
        said = library().cusparseLtGetErrorString
        said.restype = ctypes.c_char_p
        raise RuntimeError(f"cuSPARSELt's {name} says: {said(status).decode()}")


def _handle(device: int) -> ctypes.c_void_p:
    """This thread's handle of a device; made once and kept, as PyTorch does."""
    handles: dict[int, _Struct] = _of_thread.__dict__.setdefault("handles", {})
    if device not in handles:
        handle = _Struct()
        _call("cusparseLtInit", handle.address)
        handles[device] = handle
    return handles[device].address


def product(
    weight: Tensor,
    rows: Tensor,
    features: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """(M, N) of `dtype`. weight: (N, K), compressed, flat; rows: (M, K), of 16 bits or int8; residual: (M, N); all contiguous.

    bias: (N,), of `dtype`. scale: (N,) float32. Everything on the current device, in addresses that are multiples of 16 bytes.
    Raises RuntimeError with the library's words where it refuses.
    """
    out = torch.empty(rows.shape[0], features, dtype=dtype, device=rows.device)
    handle = _handle(rows.device.index)
    matrices = _matrices(handle, rows, out)
    matmul = _matmul(handle, matrices, rows.dtype, bias, scale is not None, activation)
    algorithm, plan = _Struct(), _Struct()
    _call("cusparseLtMatmulAlgSelectionInit", handle, algorithm.address, matmul.address, 0)
    _call("cusparseLtMatmulPlanInit", handle, plan.address, matmul.address, algorithm.address)
    needed = ctypes.c_size_t()
    _call("cusparseLtMatmulGetWorkspace", handle, plan.address, ctypes.byref(needed))
    # given back when the call is enqueued: the allocator hands it to what comes later on this stream
    workspace = torch.empty(max(1, needed.value), dtype=torch.uint8, device=rows.device)
    one, beta = ctypes.c_float(1.0), ctypes.c_float(0.0 if residual is None else 1.0)
    alpha = ctypes.byref(one) if scale is None else ctypes.c_void_p(scale.data_ptr())
    given = (weight, rows, out if residual is None else residual, out, workspace)
    a, b, c, d, scratch = (ctypes.c_void_p(t.data_ptr()) for t in given)
    stream = ctypes.c_void_p(torch.cuda.current_stream(rows.device).cuda_stream)
    _call("cusparseLtMatmul", handle, plan.address, alpha, a, b, ctypes.byref(beta), c, d, scratch, ctypes.byref(stream), 1)
    for matrix in matrices:
        _call("cusparseLtMatDescriptorDestroy", matrix.address)
    _call("cusparseLtMatmulPlanDestroy", plan.address)
    return out


def _matrices(handle: ctypes.c_void_p, rows: Tensor, out: Tensor) -> tuple[_Struct, _Struct, _Struct]:
    """The weights (N, K), the rows (M, K), and the result as (N, M) by columns, which is (M, N) by rows."""
    found = _Struct(), _Struct(), _Struct()
    n, m, k = (ctypes.c_int64(size) for size in (out.shape[1], rows.shape[0], rows.shape[1]))
    aligned, dtype = ctypes.c_uint32(_ALIGNMENT), TYPES[rows.dtype]
    sparse, dense, result = (s.address for s in found)
    _call("cusparseLtStructuredDescriptorInit", handle, sparse, n, k, k, aligned, dtype, ROWS, 0)
    _call("cusparseLtDenseDescriptorInit", handle, dense, m, k, k, aligned, dtype, ROWS)
    _call("cusparseLtDenseDescriptorInit", handle, result, n, m, n, aligned, TYPES[out.dtype], COLUMNS)
    return found


def _matmul(
    handle: ctypes.c_void_p,
    matrices: tuple[_Struct, _Struct, _Struct],
    dtype: torch.dtype,
    bias: Tensor | None,
    scaled: bool,
    activation: str,
) -> _Struct:
    """The product's description, with what follows it."""
    matmul = _Struct()
    sparse, dense, result = (s.address for s in matrices)
    arguments = (PLAIN, TRANSPOSED, sparse, dense, result, result, COMPUTE[dtype])
    _call("cusparseLtMatmulDescriptorInit", handle, matmul.address, *arguments)
    wanted: list[tuple[int, Any]] = []
    if bias is not None:
        wanted.append((BIAS_POINTER, ctypes.c_void_p(bias.data_ptr())))
    if activation != "none":
        wanted.append((ACTIVATIONS[activation], ctypes.c_int(1)))
    if scaled:
        wanted.append((ALPHA_IS_VECTOR, ctypes.c_int(1)))
    for which, value in wanted:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        _call("cusparseLtMatmulDescSetAttribute", handle, matmul.address, which, ctypes.byref(value), size)
    return matmul
