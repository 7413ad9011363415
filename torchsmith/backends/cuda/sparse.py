"""Products with 2:4 weights on sparse tensor cores: cuSPARSELt's and CUTLASS's kernels, which come with PyTorch.

The weights are `two_four.packed` in the engine, and in the library's layout once it is loaded. On the CPU the same ops run in
plain PyTorch on the engine's layout.

A call of cuSPARSELt makes a plan on the host, allocates its workspace from PyTorch's caching allocator and launches on the
current stream, all of which may be captured in a CUDA graph. Its handle belongs to a thread and is made at the first call, which
an engine does before it captures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.backends.cuda import cusparselt as direct
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
    """activation(x @ weight.T + bias + residual) with weights that are 2:4.

    x: (..., K), or (B, K, ...) where `channels_first`, 16 bits; weight: bytes, `two_four.packed` of (N, K) in x's dtype; bias: (N,)
    where given. The result has its features where x has them, and they are innermost in memory. M, the number of rows, is a
    multiple of what `LAYOUTS` says. library: "cusparselt" or "cutlass". algorithm: cuSPARSELt's number of a kernel.
    residual: whether the last input is one, like the result. activation: "none" or "relu". These two are cuSPARSELt's
    alone. Source: torch._cslt_sparse_mm, torch._sparse_semi_structured_linear, cusparseLtMatmul.
    """

    library: str
    dtype: torch.dtype
    features: int
    terms: int
    channels_first: bool = False
    algorithm: int = 0
    residual: bool = False
    activation: str = "none"

    prepares: ClassVar[int] = 1

    def infer(self, x: TensorType, weight: TensorType, *more: TensorType) -> TensorType:  # type: ignore[override]
        check(self, HALVES)
        found = result_type(self, x, weight, self.dtype)
        if len(more) not in (int(self.residual), 1 + self.residual) or (self.residual and not more[-1].matches(found)):
            raise Unsupported(f"a sparse product of {found} with bias and residual {', '.join(map(str, more)) or 'none'}")
        return found

    @property
    def stored_shape(self) -> tuple[int, int]:
        return packed_shape(self.features, self.terms, 2)

    def prepared(self, stored: Tensor) -> Tensor:
        return compressed_for(self, stored, self.dtype)

    def reference(self, x: Tensor, weight: Tensor, *more: Tensor) -> Tensor:  # type: ignore[override]
        bias, residual = split(more, self.residual)

        def product(rows: Tensor, residual: Tensor | None) -> Tensor:
            if not rows.is_cuda:
                return after(F.linear(rows, unpacked(weight, self.dtype, self.terms), bias), residual, self.activation)
            if self.library == CUTLASS:
                return cutlass(weight, rows, self.features, bias, None)
            if residual is None and self.activation == "none":
                return cusparselt(weight.view(self.dtype).view(self.features, -1), rows, bias, None, None, self.algorithm)
            return direct.product(weight, rows, self.features, self.dtype, bias, None, residual, self.activation)

        return over_rows(x, residual, self, product)


@dataclass(frozen=True)
class SparseIntegerLinear(Op):
    """x @ weight.T of int8 with weights that are 2:4, exactly in int32; or times a scale, plus a bias, in 16 bits.

    x: (..., K), or (B, K, ...) where `channels_first`; weight: bytes, `two_four.packed` of (N, K) int8. dtype: torch.int32 takes
    nothing else; torch.float16 and torch.bfloat16 take a scale, (N,) float32, and a bias, (N,) of that dtype, and cuSPARSELt alone
    gives them. Otherwise as `SparseLinear`.
    """

    library: str
    dtype: torch.dtype
    features: int
    terms: int
    channels_first: bool = False
    algorithm: int = 0
    activation: str = "none"

    prepares: ClassVar[int] = 1
    residual: ClassVar[bool] = False  # beside scales the library's kernels add something else (0.8.0, H200)

    def infer(self, x: TensorType, weight: TensorType, *more: TensorType) -> TensorType:  # type: ignore[override]
        check(self, (torch.int32, *HALVES))
        found = result_type(self, x, weight, torch.int8)
        scaled = self.dtype != torch.int32
        wanted = [torch.float32, self.dtype] if scaled else []
        wrong = [t.dtype for t in more] != wanted or (scaled and self.library != CUSPARSELT)
        if wrong or (not scaled and self.activation != "none"):
            given = ", ".join(map(str, more)) or "nothing"
            raise Unsupported(f"{self.library}'s sparse product of int8 to {self.dtype} with {given} for scale and bias")
        return found

    @property
    def stored_shape(self) -> tuple[int, int]:
        return packed_shape(self.features, self.terms, 1)

    def prepared(self, stored: Tensor) -> Tensor:
        return compressed_for(self, stored, torch.int8)

    def reference(self, x: Tensor, weight: Tensor, *more: Tensor) -> Tensor:  # type: ignore[override]
        scale, bias = more or (None, None)

        def product(rows: Tensor, _: Tensor | None) -> Tensor:
            if not rows.is_cuda:
                sums = F.linear(rows.double(), unpacked(weight, torch.int8, self.terms).double())  # exact
                scaled = sums if scale is None or bias is None else sums * scale + bias
                return after(scaled, None, self.activation).to(self.dtype)
            if self.library == CUTLASS:
                return cutlass(weight, rows, self.features, None, torch.int32)
            if self.activation == "none":
                given = weight.view(torch.int8).view(self.features, -1)
                return cusparselt(given, rows, bias, scale, self.dtype, self.algorithm)
            return direct.product(weight, rows, self.features, self.dtype, bias, scale, None, self.activation)

        return over_rows(x, None, self, product)


def compressed_for(op: SparseLinear | SparseIntegerLinear, stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights in the layout of the op's library, as flat bytes. Raises EngineMismatch where the library is missing."""
    direct_too = op.residual or op.activation != "none"
    if op.library == CUSPARSELT and (not has_cusparselt() or (direct_too and direct.library() is None)):
        raise EngineMismatch(
            f"the engine multiplies 2:4 weights by cuSPARSELt, and PyTorch {torch.__version__} was built without it or with an old "
            "one; compile the model here, or install PyTorch for CUDA from its own index"
        )
    return compressed(op.library, stored, dtype, op.terms)


def check(op: SparseLinear | SparseIntegerLinear, dtypes: tuple[torch.dtype, ...]) -> None:
    if op.library not in (CUSPARSELT, CUTLASS) or op.dtype not in dtypes:
        raise Unsupported(f"a sparse product by {op.library!r} in {op.dtype}; there are {CUSPARSELT} and {CUTLASS}, in {dtypes}")
    more = op.residual or op.activation != "none"
    if op.activation not in ("none", *direct.ACTIVATIONS) or (more and op.library != CUSPARSELT):
        raise Unsupported(f"{op.library}'s sparse product with activation {op.activation} and residual {op.residual}")


def split(more: Sequence[Tensor], residual: bool) -> tuple[Tensor | None, Tensor | None]:
    """The bias and the residual of an op's last inputs."""
    given = list(more)
    last = given.pop() if residual else None
    return (given[0] if given else None), last


def after(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    """What the library does to its sums."""
    y = y if residual is None else y + residual
    return torch.relu(y) if activation == "relu" else y


def result_type(op: SparseLinear | SparseIntegerLinear, x: TensorType, weight: TensorType, given: torch.dtype) -> TensorType:
    axis = 1 if op.channels_first else -1
    fits = x.rank > 1 and same(x.shape[axis], op.terms) and x.dtype == given
    if not fits or weight.dtype != torch.uint8 or weight.shape != op.stored_shape:
        raise Unsupported(f"a sparse product of {x} with {op.features} × {op.terms} weights of {given} in {weight}")
    shape = list(x.shape)
    shape[axis] = op.features
    return TensorType(tuple(shape), op.dtype)


def over_rows(
    x: Tensor,
    residual: Tensor | None,
    op: SparseLinear | SparseIntegerLinear,
    product: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    """`product` of x as rows (M, K) and the residual as rows (M, N), its result in the shape that x has but for the features."""
    given = x.movedim(1, -1) if op.channels_first else x
    added = None
    if residual is not None:
        added = (residual.movedim(1, -1) if op.channels_first else residual).reshape(-1, op.features).contiguous()
    y = product(given.reshape(-1, op.terms).contiguous(), added).view(*given.shape[:-1], op.features)
    return y.movedim(-1, 1) if op.channels_first else y


# ---- the libraries -----------------------------------------------------------------------------------------------------------


def compressed(library: str, stored: Tensor, dtype: torch.dtype, terms: int) -> Tensor:
    """Weights in the library's layout, as flat bytes. stored: `two_four.packed`, on the GPU."""
    dense = unpacked(stored, dtype, terms)
    if library == CUSPARSELT:
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
