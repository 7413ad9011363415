"""Matrix product of few rows: C[m, n] = epilogue(sum over k of A[m, k] * B[n, k]), with B known before the kernel starts.

A block holds whole rows of B in registers: it loads them while the kernel before still runs.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,assignment"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.gemm import finish, load_tile


@triton.jit
def gemv(
    a, b, c, N, a_row, a_col, b_row, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    M: tl.constexpr, K: tl.constexpr, EARLY: tl.constexpr, KNOWN: tl.constexpr, EPILOGUE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_N columns of C. Grid: (blocks of N). BLOCK_K: how much of K is one vector load of each thread of a warp.

    EARLY: loads EPILOGUE's operands, or None. KNOWN: whether these do not depend on earlier kernels, and M is 1.
    """
    col0 = tl.program_id(0) * BLOCK_N
    cols = col0 + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    col_mask = (cols < N)[:, None]
    rows_of_b = b + cols[:, None] * b_row + ks[None, :]
    pieces = (load_tile(rows_of_b, col_mask, (ks < K)[None, :], EVEN_N, BLOCK_K <= K),)
    for k in tl.static_range(BLOCK_K, K, BLOCK_K):
        pieces = pieces + (load_tile(rows_of_b + k, col_mask, (k + ks < K)[None, :], EVEN_N, k + BLOCK_K <= K),)  # noqa: RUF005
    row = tl.arange(0, 1)[:, None]
    loaded = None
    if EARLY is not None and KNOWN:
        loaded = EARLY(0, 0, row, cols[None, :], row < M, (cols < N)[None, :], e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    wait_for_inputs(PDL)
    let_next_start(PDL)
    for m in tl.static_range(M):
        if EARLY is not None and not KNOWN:
            loaded = EARLY(
                0, m, m + row, cols[None, :], m + row < M, (cols < N)[None, :],
                e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            )  # fmt: skip
        row_of_a = a + m * a_row + ks[None, :] * a_col
        products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for piece in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
            # for each column anew, from L1: loaded once the weights would move to the layout of one row
            places = row_of_a + piece * BLOCK_K * a_col + tl.zeros((BLOCK_N, 1), tl.int32)
            x = load_tile(places, col_mask, (piece * BLOCK_K + ks < K)[None, :], True, piece * BLOCK_K + BLOCK_K <= K)
            products += pieces[piece].to(tl.float32) * x.to(tl.float32)
        sums = tl.sum(products, 1)
        finish(
            sums[None, :], c, 0, m, col0, M, N, 0, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, 1, BLOCK_N, True, EVEN_N, False, loaded,
        )  # fmt: skip


def twin(a: Tensor, b: Tensor, epilogue: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch. a: (M, K), b: (N, K); the result is (M, N) of `dtype`."""
    return epilogue((a.float()[:, None, :] * b.float()[None]).sum(2)).to(dtype)
