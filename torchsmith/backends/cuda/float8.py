"""Products and attention of float8 (e4m3fn): the main ops of its kernels, which quantize/dequantize pairs become."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.attention import Attention
from torchsmith.ops.linear import Linear

FLOAT8 = torch.float8_e4m3fn
LEAST_ARCHITECTURE = 89  # whose tensor cores multiply it
# Tensor cores of Hopper and Ada keep 13 bits behind the leading one of what they sum up, and cut off the rest. Of normal numbers
# that makes 5e-4 of 768 terms and 1.3e-3 of 3072, where rounding to three bits has made 4e-2; the best that can be said of any
# numbers is that a step of 32 terms loses 2^-13 of the sum. Sums of more terms are added up in float32, 128 terms at a time.
MOST_FAST_TERMS = 4096


@dataclass(frozen=True)
class Float8Linear(Op):
    """x @ weight.T. x: (..., K), weight: (N, K), float8_e4m3fn; the sums and the result are of `dtype`. Source: aten._scaled_mm."""

    dtype: torch.dtype = torch.float32

    def infer(self, x: TensorType, weight: TensorType) -> TensorType:  # type: ignore[override]
        _check(x, weight)
        return Linear().infer(x.with_dtype(self.dtype), weight.with_dtype(self.dtype))

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        return Linear().reference(x.to(self.dtype), weight.to(self.dtype))


@dataclass(frozen=True)
class Float8Attention(Op):
    """softmax(scale * query @ key.T + mask) @ value as `Attention` has it. query, key, value: float8_e4m3fn.

    mask: bool, or of any wider floating dtype. The scores and the result are of `dtype`.
    Source: aten.scaled_dot_product_attention.
    """

    scale: float
    causal: bool
    probabilities: torch.dtype | None = None
    dtype: torch.dtype = torch.float32

    def infer(  # type: ignore[override]
        self, query: TensorType, key: TensorType, value: TensorType, mask: TensorType | None = None
    ) -> TensorType:
        _check(query, key, value)
        three = [t.with_dtype(self.dtype) for t in (query, key, value)]
        if mask is not None and mask.dtype.is_floating_point:
            mask = mask.with_dtype(self.dtype)
        return self._wide().infer(*three, *([] if mask is None else [mask]))

    def reference(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        if mask is not None and mask.is_floating_point():
            mask = mask.to(self.dtype)
        return self._wide().reference(query.to(self.dtype), key.to(self.dtype), value.to(self.dtype), mask)

    def _wide(self) -> Attention:
        return Attention(self.scale, self.causal, self.probabilities)


def _check(*given: TensorType) -> None:
    if any(t.dtype != FLOAT8 for t in given):
        raise Unsupported(f"a product of {' and '.join(map(str, given))}; it takes float8_e4m3fn")
