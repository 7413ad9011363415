"""Products of eight-bit integers, summed in 32 bits: the main ops of int8 kernels, which quantize/dequantize pairs become."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.linear import Linear

MOST_TERMS = 1 << 16  # of a sum: 255 * 128 each, with a zero point taken off, stay within 32 bits


@dataclass(frozen=True)
class IntegerLinear(Op):
    """x @ weight.T, exactly. x: (..., K), weight: (N, K), int8; the result is int32. K is at most 65536. Source: aten._int_mm."""

    def infer(self, x: TensorType, weight: TensorType) -> TensorType:  # type: ignore[override]
        _check(x, weight)
        return Linear().infer(x.with_dtype(torch.float32), weight.with_dtype(torch.float32)).with_dtype(torch.int32)

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        # in float64 every sum is exact, and PyTorch has the product on every device
        return Linear().reference(x.double(), weight.double()).to(torch.int32)


@dataclass(frozen=True)
class IntegerConvolution(Op):
    """A convolution, exactly, padded with zeros. x: (B, C, *spatial), weight: (K, C / groups, *kernel), int8; the result is int32.

    stride, padding, dilation, groups: as `Convolution` has them.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def infer(self, x: TensorType, weight: TensorType) -> TensorType:  # type: ignore[override]
        _check(x, weight)
        return self._wide().infer(x.with_dtype(torch.float32), weight.with_dtype(torch.float32)).with_dtype(torch.int32)

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        return self._wide().reference(x.double(), weight.double()).to(torch.int32)

    def _wide(self) -> Convolution:
        return Convolution(self.stride, self.padding, self.dilation, self.groups)


def _check(x: TensorType, weight: TensorType) -> None:
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise Unsupported(f"an integer product of {x} and {weight}; it takes int8")
    terms = 1
    for size in weight.shape[1:]:
        if not isinstance(size, int):
            raise Unsupported(f"an integer product with weights {weight}, whose sizes must be known")
        terms *= size
    if terms > MOST_TERMS:
        raise Unsupported(f"an integer product of sums of {terms} terms; up to {MOST_TERMS} fit 32 bits")
