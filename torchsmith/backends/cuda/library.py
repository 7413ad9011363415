"""Kernels of the libraries that come with PyTorch (cuDNN, cuBLASLt), as ops that an engine calls by name.

A call allocates what it gives, in the strides that the plan has for it, so that the engine takes it over without a copy. On the
CPU the same ops run in plain PyTorch.

cuDNN chooses an algorithm when it first meets a problem: by its heuristics, or (`benchmark`) by timing some of them, which
cannot be done while a CUDA graph is being captured. An engine runs its steps once before it captures them, on the same thread,
with operands of the same sizes, strides and alignment: the choice is in PyTorch's cache by then, which has the same key. What
`benchmark` picks may differ from process to process, and with it the last bits of a result; tactics prefer the heuristics
where timing does not say otherwise.

Float32 is rounded to TF32 where PyTorch's switches allow it, as in its own ops; a plan's steps set them (`precision.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from torchsmith.backends.cuda.precision import Tf32
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.linear import Linear

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LibraryConvolution(Op):
    """Two-dimensional convolution by cuDNN, in channels-last, with what it can do to the result in the same kernel.

    x: (N, C, H, W), weight: (K, C / groups, R, S), bias: (K,) and residual: like the result, both where given; one floating
    dtype. activation: "none" or "relu", which comes last; "relu" and a residual take 16 bits. Source: aten.cudnn_convolution,
    aten.cudnn_convolution_relu, aten.cudnn_convolution_add_relu.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str = "none"
    benchmark: bool = False

    def infer(  # type: ignore[override]
        self, x: TensorType, weight: TensorType, bias: TensorType | None = None, residual: TensorType | None = None
    ) -> TensorType:
        pairs = tuple((p, p) for p in self.padding)
        found = Convolution(self.stride, pairs, self.dilation, self.groups).infer(x, weight, bias)
        if x.rank != 4 or self.activation not in ("none", "relu"):
            raise Unsupported(f"cuDNN's convolution of {x} with activation {self.activation}; it takes (N, C, H, W), none or relu")
        if residual is not None and (self.activation != "relu" or not residual.matches(found)):
            raise Unsupported(f"cuDNN adds a residual of {found} before relu, and was given {residual} and {self.activation}")
        return found

    def reference(  # type: ignore[override]
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if not x.is_cuda:
            y = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
            y = y if residual is None else y + residual
            y = torch.relu(y) if self.activation == "relu" else y
        elif self.activation == "none":
            sizes = (self.padding, self.stride, self.dilation, self.groups)
            y = torch.cudnn_convolution(x, weight, *sizes, self.benchmark, False, Tf32.allowed().conv)
            y = y if bias is None else y.add_(bias.view(1, -1, 1, 1))
        else:
            # without a bias PyTorch would fill one with zeros, with a kernel of its own
            bias = x.new_zeros(weight.shape[0]) if bias is None else bias
            with cudnn_benchmark(self.benchmark):
                if residual is None:
                    y = torch.cudnn_convolution_relu(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
                else:
                    residual = residual.contiguous(memory_format=torch.channels_last)
                    y = torch.cudnn_convolution_add_relu(
                        x, weight, residual, 1.0, bias, self.stride, self.padding, self.dilation, self.groups
                    )
        return y.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LibraryLinear(Op):
    """x @ weight.T + bias by cuBLASLt, then the activation, in one kernel. Source: aten.addmm, aten._addmm_activation.

    x: (..., K), or (N, K, ...) where `channels_first`, weight: (N, K), bias: (N,) where given; one floating dtype. The result
    has its features where x has them, and they are innermost in memory. activation: "none", "relu" or "gelu" (by tanh); the
    latter two take a bias.
    """

    activation: str = "none"
    channels_first: bool = False

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:  # type: ignore[override]
        if self.activation not in ("none", "relu", "gelu") or (self.activation != "none" and bias is None):
            raise Unsupported(f"cuBLASLt's product with activation {self.activation} and bias {bias}")
        if not self.channels_first:
            return Linear().infer(x, weight, bias)
        if x.rank < 2 or weight.rank != 2 or not same(x.shape[1], weight.shape[1]):
            raise Unsupported(f"a product of {x} with weights {weight}; it takes (N, K, ...) and (N, K)")
        return x.with_shape(x.shape[0], weight.shape[0], *x.shape[2:])

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        given = x.movedim(1, -1) if self.channels_first else x
        y = self._product(given.reshape(-1, given.shape[-1]), weight.t(), bias).view(*given.shape[:-1], weight.shape[0])
        return y.movedim(-1, 1) if self.channels_first else y

    def _product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return torch.mm(rows, weight)
        if self.activation == "none":
            return torch.addmm(bias, rows, weight)
        if rows.is_cuda:
            return torch._addmm_activation(bias, rows, weight, use_gelu=self.activation == "gelu")
        y = torch.addmm(bias, rows, weight)  # on the CPU _addmm_activation's gelu is another
        return torch.relu(y) if self.activation == "relu" else F.gelu(y, approximate="tanh")


@contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """PyTorch's own switch for as long as the block runs; its fused convolutions have no argument for it."""
    before = torch.backends.cudnn.benchmark
    torch._C._set_cudnn_benchmark(on)
    try:
        yield
    finally:
        torch._C._set_cudnn_benchmark(before)


@dataclass(frozen=True)
class LibraryFloat8Linear(Op):
    """x @ weight.T of float8 by cuBLASLt, times a number for each row and one for each column. Source: aten._scaled_mm.

    x: (..., K), weight: (N, K), float8_e4m3fn, K and N multiples of 16; rows: (M, 1), columns: (1, N), or () both, float32;
    bias: (N,) of the result's dtype. dtype: the result's, bfloat16 where there are numbers for rows and columns. fast: whether
    tensor cores may sum up in the few bits that they have on Hopper.
    """

    dtype: torch.dtype
    fast: bool

    def infer(  # type: ignore[override]
        self, x: TensorType, weight: TensorType, rows: TensorType, columns: TensorType, bias: TensorType | None = None
    ) -> TensorType:
        narrow = {x.dtype, weight.dtype} == {torch.float8_e4m3fn}
        sizes = [size for size in weight.shape if not isinstance(size, int) or size % 16]
        if not narrow or sizes or {rows.dtype, columns.dtype} != {torch.float32} or rows.rank != columns.rank:
            raise Unsupported(f"cuBLASLt's product of {x} and {weight} by {rows} and {columns}; it takes float8, sizes of 16")
        if rows.rank and (self.dtype != torch.bfloat16 or not same(columns.shape[1], weight.shape[0])):
            raise Unsupported(f"cuBLASLt's product by {rows} and {columns} in {self.dtype}; it gives bfloat16")
        if bias is not None and bias.dtype != self.dtype:
            raise Unsupported(f"cuBLASLt's product in {self.dtype} with a bias {bias}")
        wide = Linear().infer(x.with_dtype(torch.float32), weight.with_dtype(torch.float32))
        return wide.with_dtype(self.dtype)

    def reference(  # type: ignore[override]
        self, x: Tensor, weight: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        given = x.reshape(-1, x.shape[-1])
        if given.is_cuda:
            y = torch._scaled_mm(given, weight.t(), rows, columns, bias=bias, out_dtype=self.dtype, use_fast_accum=self.fast)
        else:
            y = (given.float() @ weight.float().t()) * rows * columns
            y = (y if bias is None else y + bias.float()).to(self.dtype)
        return y.view(*x.shape[:-1], weight.shape[0])
