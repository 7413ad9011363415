"""Products with 2:4 weights on sparse tensor cores: cuSPARSELt's and CUTLASS's kernels, which come with PyTorch.

The weights are `two_four.packed` in the engine, and in the library's layout once it is loaded. On the CPU the same ops run in
plain PyTorch on the engine's layout.

A call of cuSPARSELt makes a plan on the host, allocates its workspace from PyTorch's caching allocator and launches on the
current stream, all of which may be captured in a CUDA graph. Its handle belongs to a thread and is made at the first call, which
an engine does before it captures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.backends.cuda.two_four import packed_shape, unpacked
from torchsmith.errors import EngineMismatch, Unsupported
from torchsmith.ir.dim import same
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType

CUSPARSELT, CUTLASS = "cusparselt", "cutlass"
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class SparseLayout:
    """What a library takes of weights (N, K) and rows (M, K). rows, terms, count: what N, K and M have to be multiples of.

    Source: `_DTYPE_SHAPE_CONSTRAINTS` of torch.sparse.semi_structured.
    """

    rows: int
    terms: int
    count: int


LAYOUTS = {
    (CUSPARSELT, 2): SparseLayout(16, 16, 8),
    (CUSPARSELT, 1): SparseLayout(32, 32, 16),
    (CUTLASS, 2): SparseLayout(32, 64, 8),
    (CUTLASS, 1): SparseLayout(16, 128, 16),
}


def has_cusparselt() -> bool:
    return bool(getattr(torch._C, "_has_cusparselt", False))


def has_cutlass() -> bool:
    """Whether PyTorch's CUTLASS kernels with 2:4 weights run on the current GPU: they are made for compute capability 8."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 8


@dataclass(frozen=True)
class SparseLinear(Op):
    """x @ weight.T + bias with weights that are 2:4. Source: torch._cslt_sparse_mm, torch._sparse_semi_structured_linear.

    x: (..., K), or (B, K, ...) where `channels_first`, 16 bits; weight: bytes, `two_four.packed` of (N, K) in x's dtype;
    bias: (N,) where given. The result has its features where x has them, and they are innermost in memory. M, the number of
    rows, is a multiple of what `LAYOUTS` says. library: "cusparselt" or "cutlass". algorithm: cuSPARSELt's number of a kernel.
    """

    library: str
    dtype: torch.dtype
    features: int
    terms: int
    channels_first: bool = False
    algorithm: int = 0

    prepares: ClassVar[int] = 1

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:  # type: ignore[override]
        check(self.library, self.dtype, HALVES)
        return result_type(self, x, weight, self.dtype)

    @property
    def stored_shape(self) -> tuple[int, int]:
        return packed_shape(self.features, self.terms, 2)

    def prepared(self, stored: Tensor) -> Tensor:
        return compressed(self.library, stored, self.dtype, self.terms)

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return over_rows(x, self.channels_first, self.features, lambda rows: self._product(rows, weight, bias))

    def _product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not rows.is_cuda:
            return F.linear(rows, unpacked(weight, self.dtype, self.terms), bias)
        if self.library == CUSPARSELT:
            return cusparselt(weight.view(self.dtype).view(self.features, -1), rows, bias, None, None, self.algorithm)
        return cutlass(weight, rows, self.features, bias, None)


@dataclass(frozen=True)
class SparseIntegerLinear(Op):
    """x @ weight.T of int8 with weights that are 2:4, exactly in int32, or times a scale and plus a bias in 16 bits.

    x: (..., K), or (B, K, ...) where `channels_first`; weight: bytes, `two_four.packed` of (N, K) int8. dtype: torch.int32 takes
    neither scale nor bias; torch.float16 and torch.bfloat16 take both, (N,) float32, and cuSPARSELt alone gives them. Otherwise
    as `SparseLinear`. Source: torch._cslt_sparse_mm, torch._sparse_semi_structured_linear.
    """

    library: str
    dtype: torch.dtype
    features: int
    terms: int
    channels_first: bool = False
    algorithm: int = 0

    prepares: ClassVar[int] = 1

    def infer(  # type: ignore[override]
        self, x: TensorType, weight: TensorType, scale: TensorType | None = None, bias: TensorType | None = None
    ) -> TensorType:
        check(self.library, self.dtype, (torch.int32, *HALVES))
        scaled = self.dtype != torch.int32
        if scaled != (scale is not None) or scaled != (bias is not None) or (scaled and self.library != CUSPARSELT):
            raise Unsupported(f"{self.library}'s sparse product of int8 to {self.dtype} with scale {scale} and bias {bias}")
        return result_type(self, x, weight, torch.int8)

    @property
    def stored_shape(self) -> tuple[int, int]:
        return packed_shape(self.features, self.terms, 1)

    def prepared(self, stored: Tensor) -> Tensor:
        return compressed(self.library, stored, torch.int8, self.terms)

    def reference(  # type: ignore[override]
        self, x: Tensor, weight: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        return over_rows(x, self.channels_first, self.features, lambda rows: self._product(rows, weight, scale, bias))

    def _product(self, rows: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        if not rows.is_cuda:
            sums = F.linear(rows.double(), unpacked(weight, torch.int8, self.terms).double())  # exact
            return (sums if scale is None or bias is None else (sums * scale + bias)).to(self.dtype)
        if self.library == CUSPARSELT:
            given = weight.view(torch.int8).view(self.features, -1)
            return cusparselt(given, rows, bias, scale, self.dtype, self.algorithm)
        return cutlass(weight, rows, self.features, None, torch.int32)


def check(library: str, dtype: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> None:
    if library not in (CUSPARSELT, CUTLASS) or dtype not in dtypes:
        raise Unsupported(f"a sparse product by {library!r} in {dtype}; there are {CUSPARSELT} and {CUTLASS}, in {dtypes}")


def result_type(op: SparseLinear | SparseIntegerLinear, x: TensorType, weight: TensorType, given: torch.dtype) -> TensorType:
    axis = 1 if op.channels_first else -1
    fits = x.rank > 1 and same(x.shape[axis], op.terms) and x.dtype == given
    if not fits or weight.dtype != torch.uint8 or weight.shape != op.stored_shape:
        raise Unsupported(f"a sparse product of {x} with {op.features} × {op.terms} weights of {given} in {weight}")
    shape = list(x.shape)
    shape[axis] = op.features
    return TensorType(tuple(shape), op.dtype)


def over_rows(x: Tensor, channels_first: bool, features: int, product: object) -> Tensor:
    """`product` of x as rows (M, K), its result in the shape that x has but for the features."""
    assert callable(product)
    given = x.movedim(1, -1) if channels_first else x
    y: Tensor = product(given.reshape(-1, given.shape[-1])).view(*given.shape[:-1], features)
    return y.movedim(-1, 1) if channels_first else y


# ---- the libraries -----------------------------------------------------------------------------------------------------------


def compressed(library: str, stored: Tensor, dtype: torch.dtype, terms: int) -> Tensor:
    """Weights in the library's layout, as flat bytes. stored: `two_four.packed`, on the GPU. Raises EngineMismatch without it."""
    dense = unpacked(stored, dtype, terms)
    if library == CUSPARSELT:
        if not has_cusparselt():
            raise EngineMismatch(
                f"the engine multiplies 2:4 weights by cuSPARSELt, and PyTorch {torch.__version__} was built without it; "
                "compile the model here, or install PyTorch for CUDA from its own index"
            )
        return torch._cslt_compress(dense).reshape(-1).view(torch.uint8)
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    values, places = sparse_semi_structured_from_dense_cutlass(dense)  # type: ignore[no-untyped-call]
    return torch.cat([t.contiguous().view(-1).view(torch.uint8) for t in (values, places)])


def cusparselt(
    weight: Tensor, rows: Tensor, bias: Tensor | None, scale: Tensor | None, dtype: torch.dtype | None, algorithm: int
) -> Tensor:
    """rows @ weight.T, in the order of the rows. weight: compressed, (N, ...)."""
    return torch._cslt_sparse_mm(weight, rows.t(), bias, scale, dtype, transpose_result=True, alg_id=algorithm)


def cutlass(weight: Tensor, rows: Tensor, features: int, bias: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """rows @ weight.T. weight: compressed, flat bytes."""
    terms, itemsize = rows.shape[1], rows.dtype.itemsize
    split = features * (terms // 2) * itemsize
    values = weight[:split].view(rows.dtype).view(features, -1)
    places = weight[split:].view(torch.int32 if itemsize == 1 else torch.int16).view(features, -1)
    return torch._sparse_semi_structured_linear(rows, values, places, bias=bias, out_dtype=dtype).contiguous()
