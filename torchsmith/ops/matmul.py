"""Products of matrices and vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import broadcast, same
from torchsmith.ir.graph import Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.promote import Number, scalar
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class MatMul(Op):
    """a @ b. a: (..., M, K), b: (..., K, N) of one dtype, what stands before broadcast. Source: aten.matmul."""

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        if a.rank < 2 or b.rank < 2 or not same(a.shape[-1], b.shape[-2]):
            raise Unsupported(f"a matrix product of {a} and {b}; it takes (..., M, K) and (..., K, N)")
        if a.dtype != b.dtype or a.dtype == torch.bool:
            raise Unsupported(f"a matrix product of {a} and {b}; it takes numbers of one dtype")
        return a.with_shape(*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])

    def reference(self, a: Tensor, b: Tensor) -> Tensor:
        if a.is_cuda and not a.dtype.is_floating_point:  # PyTorch has no such kernel on GPUs
            return torch.mul(a.unsqueeze(-1), b.unsqueeze(-3)).sum(-2, dtype=a.dtype)
        return torch.matmul(a, b)


@converter(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.vdot.default)
def matmul(a: Value, b: Value) -> Value:
    """torch.matmul: a vector on the left is a row, one on the right a column, and its dimension goes again."""
    left = reshaped(a, (1, *a.type.shape)) if a.type.rank == 1 else a
    right = reshaped(b, (*b.type.shape, 1)) if b.type.rank == 1 else b
    y = MatMul()(left, right)
    shape = y.type.shape
    if a.type.rank == 1:
        shape = (*shape[:-2], shape[-1])
    if b.type.rank == 1:
        shape = shape[:-1]
    return reshaped(y, shape)


@converter(aten.outer.default, aten.ger.default)
def outer(a: Value, b: Value) -> Value:
    # one product each, where a matrix product would make a row of one
    return Binary("mul")(reshaped(a, (*a.type.shape, 1)), b)


def _scaled(x: Value, factor: Number) -> Value:
    return x if factor == 1 else Binary("mul")(x, scalar(factor, x.type.dtype))


def _plus(c: Value, product: Value, beta: Number, alpha: Number) -> Value:
    """beta * c + alpha * product. As in PyTorch, c does not count where beta is 0, not even its NaNs."""
    scaled = _scaled(product, alpha)
    return scaled if beta == 0 else Binary("add")(_scaled(c, beta), scaled)


@converter(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def addmm(c: Value, a: Value, b: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    return _plus(c, matmul(a, b), beta, alpha)


@converter(aten.addbmm.default)
def addbmm(c: Value, a: Value, b: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    return _plus(c, Reduce("sum", (0,), False)(MatMul()(a, b)), beta, alpha)


@converter(aten.addr.default)
def addr(c: Value, a: Value, b: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    return _plus(c, outer(a, b), beta, alpha)
