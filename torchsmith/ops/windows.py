"""Windows of a tensor side by side: Tensor.unfold and im2col."""

from __future__ import annotations

import torch

from torchsmith.errors import Unsupported
from torchsmith.ir.builder import constant, expected
from torchsmith.ir.dim import Dim, floordiv, simplify
from torchsmith.ir.graph import Value
from torchsmith.ops.binary import Binary
from torchsmith.ops.create import Arange
from torchsmith.ops.gather import Gather
from torchsmith.ops.pad import padded
from torchsmith.ops.permute import permuted
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped

aten = torch.ops.aten


def windows(x: Value, dim: int, count: Dim, size: int, step: int, dilation: int = 1) -> Value:
    """x with dimension `dim` as two: which window, and which of its `size` elements, which lie `dilation` apart."""
    within = torch.arange(size) * dilation
    if isinstance(count, int):
        return Gather(dim)(x, constant(torch.arange(count)[:, None] * step + within, "windows"))
    first = reshaped(Arange(0, step, count, torch.int64)(), (count, 1))
    return Gather(dim)(x, Binary("add")(first, constant(within, "within")))


@converter(aten.unfold.default)
def unfold(x: Value, dim: int, size: int, step: int) -> Value:
    if x.type.rank == 0:
        raise Unsupported("windows of a tensor of no dimensions")
    dim %= x.type.rank
    found = windows(x, dim, expected().shape[dim], size, step)
    return permuted(found, [d for d in range(x.type.rank + 1) if d != dim + 1] + [dim + 1])


@converter(aten.im2col.default)
def im2col(x: Value, kernel: list[int], dilation: list[int], padding: list[int], stride: list[int]) -> Value:
    """x: (N, C, H, W) or (C, H, W). The result: (N, C * kernel, windows), the windows row by row."""
    kernel, dilation, padding, stride = (list(given) * (2 // len(given)) for given in (kernel, dilation, padding, stride))
    rank = x.type.rank
    sizes = x.type.shape[-2:]
    counts = [
        simplify(floordiv(size + 2 * p - d * (k - 1) - 1, s) + 1)
        for size, k, d, p, s in zip(sizes, kernel, dilation, padding, stride, strict=True)
    ]
    x = padded(x, [padding[1], padding[1], padding[0], padding[0]], "constant", 0.0)
    rows = windows(x, rank - 2, counts[0], kernel[0], stride[0], dilation[0])
    both = windows(rows, rank, counts[1], kernel[1], stride[1], dilation[1])  # (…, rows, within, columns, within)
    first = list(range(rank - 2))
    return reshaped(permuted(both, [*first, rank - 1, rank + 1, rank - 2, rank]), expected().shape)
