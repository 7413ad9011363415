"""Linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import product, same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class Linear(Op):
    """x @ weight.T + bias. x: (..., K), weight: (N, K), bias: (N,) where given; floating. Source: aten.linear."""

    def infer(self, x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
        if x.rank < 1 or weight.rank != 2 or not same(x.shape[-1], weight.shape[1]):
            raise Unsupported(f"a linear layer of {x} with weights {weight}; it takes (..., K) and (N, K)")
        if bias is not None and not (bias.rank == 1 and same(bias.shape[0], weight.shape[0])):
            raise Unsupported(f"a linear layer with weights {weight} and bias {bias}; it takes (N, K) and (N,)")
        if len({t.dtype for t in (x, weight, bias) if t is not None}) > 1 or not x.dtype.is_floating_point:
            raise Unsupported(f"a linear layer of {x}, {weight} and {bias}; it takes one floating dtype")
        return x.with_shape(*x.shape[:-1], weight.shape[0])

    def reference(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)


@converter(aten.linear.default)
def linear(x: Value, weight: Value, bias: Value | None = None) -> Value:
    return Linear()(x, weight) if bias is None else Linear()(x, weight, bias)


@converter(aten.bilinear.default)
def bilinear(a: Value, b: Value, weight: Value, bias: Value | None = None) -> Value:
    """Of every pair of features, as one linear layer. a: (..., I), b: (..., J), weight: (N, I, J)."""
    rows, left, right = weight.type.shape
    pairs = Binary("mul")(reshaped(a, (*a.type.shape, 1)), reshaped(b, (*b.type.shape[:-1], 1, right)))
    features = product((left, right))
    return linear(reshaped(pairs, (*a.type.shape[:-1], features)), reshaped(weight, (rows, features)), bias)
