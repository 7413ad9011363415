"""Layer norm and the linear layer after it: C = epilogue(rstd * (X W'^T - mean * sums) + bias), with the norm's weight in W'.

Each block sees whole rows of X, and sums what their means and variances take while it multiplies.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import dot, let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.gemm import fetch_ahead, finish, load_tile, place


@triton.jit
def gemm_norm(
    a, b, sums, bias, c, M, N, a_row, b_row, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    K: tl.constexpr, EPS: tl.constexpr, EPILOGUE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, HALVES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of C. Grid: (blocks of M * blocks of N). a: (M, K), b: (N, K), sums, bias: (N,) float32; BLOCK_K divides K.

    Squares are summed of differences from each row's first element: of the elements themselves the sums would cancel where
    a row's mean is far from zero.
    """
    block_m, block_n = place(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    if AHEAD > 0:
        fetch_ahead(b, 0, block_m, block_n, M, N, b_row, K, BLOCK_M, BLOCK_N, AHEAD)
    rows = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    a_tile = a + rows[:, None] * a_row + ks[None, :]
    b_tile = b + cols[None, :] * b_row + ks[:, None]
    slope = load_tile(sums + cols[None, :], row_mask, col_mask, True, EVEN_N)
    level = load_tile(bias + cols[None, :], row_mask, col_mask, True, EVEN_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    wait_for_inputs(PDL)
    first = load_tile(a + rows[:, None] * a_row, row_mask, col_mask, EVEN_M, True).to(tl.float32)
    for _ in range(0, K, BLOCK_K):
        x = load_tile(a_tile, row_mask, col_mask, EVEN_M, True)
        w = load_tile(b_tile, col_mask, row_mask, EVEN_N, True)
        acc = dot(x, w, acc, "ieee")
        apart = x.to(tl.float32) - first
        total += tl.sum(apart, 1)
        squares += tl.sum(apart * apart, 1)
        a_tile += BLOCK_K
        b_tile += BLOCK_K
    let_next_start(PDL)
    shift = total * (1.0 / K)
    rstd = tl.rsqrt(tl.maximum(squares * (1.0 / K) - shift * shift, 0.0) + EPS)
    acc = (acc - (first + shift[:, None]) * slope) * rstd[:, None] + level
    finish(
        acc, c, 0, block_m * BLOCK_M, block_n * BLOCK_N, M, N, 0, c_row, c_col,
        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N, EVEN_M, EVEN_N, HALVES,
    )  # fmt: skip


def twin(x: Tensor, scaled: Tensor, sums: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same in plain PyTorch, before the epilogue. x: (M, K), scaled: (N, K), sums, bias: (N,) float32; float32 (M, N)."""
    wide = x.float()
    mean = wide.mean(1, keepdim=True)
    rstd = torch.rsqrt(wide.var(1, keepdim=True, correction=0) + eps)
    return rstd * (wide @ scaled.float().T - mean * sums) + bias
