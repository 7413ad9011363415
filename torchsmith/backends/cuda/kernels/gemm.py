"""Matrix product: C[m, n] = epilogue(sum over k of prologue(A[m, k]) * B[n, k]), for each of a batch.

Every operand has its own strides; A's and C's rows may be the pixels of a channels-last picture (a 1×1 convolution).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import dot, let_next_start, wait_for_inputs


@triton.jit
def gemm(
    a, b, c, M, N, K,
    a_batch, a_row, a_col, b_batch, b_row, b_col, c_batch, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    PROLOGUE: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of C. Grid: (blocks of M * blocks of N, batch). Blocks run in groups of rows, so that B's tiles stay in L2."""
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    block, batch = tl.program_id(0), tl.program_id(1)
    group = block // (GROUP_M * blocks_n)
    group_size = min(blocks_m - group * GROUP_M, GROUP_M)
    block_m = group * GROUP_M + (block % (GROUP_M * blocks_n)) % group_size
    block_n = (block % (GROUP_M * blocks_n)) // group_size
    rows = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = rows < M, cols < N
    a_tile = a + batch * a_batch + rows[:, None] * a_row + ks[None, :] * a_col
    b_tile = b + batch * b_batch + cols[None, :] * b_row + ks[:, None] * b_col
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    wait_for_inputs(PDL)
    for k in range(0, K, BLOCK_K):
        left = ks < K - k
        x = tl.load(a_tile, mask=row_mask[:, None] & left[None, :], other=0.0)
        w = tl.load(b_tile, mask=col_mask[None, :] & left[:, None], other=0.0)
        if PROLOGUE is not None:
            mask = row_mask[:, None] & left[None, :]
            x = PROLOGUE(
                x.to(tl.float32), batch, rows[:, None], k + ks[None, :], mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3
            ).to(a.dtype.element_ty)
        acc = dot(x, w, acc, PRECISION)
        a_tile += BLOCK_K * a_col
        b_tile += BLOCK_K * b_col
    let_next_start(PDL)
    mask = row_mask[:, None] & col_mask[None, :]
    y = EPILOGUE(acc, batch, rows[:, None], cols[None, :], mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    place = batch * c_batch + rows[:, None] * c_row + cols[None, :] * c_col
    tl.store(c + place, y.to(c.dtype.element_ty), mask=mask)


def twin(
    a: Tensor, b: Tensor, prologue: Callable[[Tensor], Tensor] | None, epilogue: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Tensor:
    """The same in plain PyTorch. a: (batch, M, K), b: (batch, N, K); the result is (batch, M, N) of `dtype`."""
    x = a.float() if prologue is None else prologue(a.float()).to(a.dtype).float()
    return epilogue(x @ b.float().transpose(1, 2)).to(dtype)
