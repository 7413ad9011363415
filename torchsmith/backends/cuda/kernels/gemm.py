"""Matrix product: C[m, n] = epilogue(sum over k of prologue(A[m, k]) * B[n, k]), for each of a batch.

Every operand has its own strides; A's and C's rows may be the pixels of a channels-last picture (a 1×1 convolution).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import INTERPRETED, dot, let_next_start, wait_for_inputs


@triton.jit
def gemm(
    a, b, c, M, N,
    a_batch, a_outer, a_row, a_col, b_batch, b_row, b_col, c_split, c_batch, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    K: tl.constexpr, K_PART: tl.constexpr, A_INNER: tl.constexpr,
    PROLOGUE: tl.constexpr, EARLY: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHAINS: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, HALVES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of C. Grid: (blocks of M * blocks of N, batch, parts of K).

    K_PART: how much of K one block sums; where that is not all of it, C holds the sums of the parts, `c_split` apart, and
    EPILOGUE is None. A_INNER: where rows count two dimensions of A that are not one: the inner one's size (its stride is
    `a_row`, the outer one's `a_outer`). EARLY: loads EPILOGUE's operands before the product, or None. CHAINS: 1, 2 or 4 sums
    of each element of C, of BLOCK_K in turn: a sum's next step waits for its last. EVEN_M, EVEN_N: whether no block reaches
    past M, N. AHEAD: how many 128-byte lines of each of its rows of B a block brings into L2 before it waits for what comes
    before it.
    """
    batch, split = tl.program_id(1), tl.program_id(2)
    block_m, block_n = place(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    if AHEAD > 0:
        fetch_ahead(b, split * K_PART, block_m, block_n, M, N, b_row, K, BLOCK_M, BLOCK_N, AHEAD)
    wait_for_inputs(PDL)
    loaded = None
    if EARLY is not None:
        rows = (block_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
        cols = (block_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
        loaded = EARLY(
            batch, block_m * BLOCK_M, rows, cols, rows < M, cols < N, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3
        )  # fmt: skip
    acc = multiply(
        a, b, batch, split, block_m, block_n, M, N, a_batch, a_outer, a_row, a_col, b_batch, b_row, b_col,
        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
        K, K_PART, A_INNER, PROLOGUE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, CHAINS, EVEN_M, EVEN_N,
    )  # fmt: skip
    let_next_start(PDL)
    finish(
        acc, c + split * c_split, batch, block_m * BLOCK_M, block_n * BLOCK_N, M, N, c_batch, c_row, c_col,
        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N, EVEN_M, EVEN_N, HALVES, loaded,
    )  # fmt: skip


@triton.jit
def gemm_persistent(
    a, b, c, M, N,
    a_batch, a_outer, a_row, a_col, b_batch, b_row, b_col, c_split, c_batch, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    K: tl.constexpr, K_PART: tl.constexpr, A_INNER: tl.constexpr,
    PROLOGUE: tl.constexpr, EARLY: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHAINS: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, HALVES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The same with as many blocks as fit the device, each going through tiles. Grid: (blocks, batch)."""
    batch = tl.program_id(1)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    wait_for_inputs(PDL)
    let_next_start(PDL)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        block_m, block_n = place(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = multiply(
            a, b, batch, 0, block_m, block_n, M, N, a_batch, a_outer, a_row, a_col, b_batch, b_row, b_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            K, K_PART, A_INNER, PROLOGUE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, CHAINS, EVEN_M, EVEN_N,
        )  # fmt: skip
        finish(
            acc, c, batch, block_m * BLOCK_M, block_n * BLOCK_N, M, N, c_batch, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N, EVEN_M, EVEN_N, HALVES,
        )  # fmt: skip


@triton.jit
def gemm_sum(
    parts, c, M, N, p_split, p_batch, c_batch, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    EPILOGUE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """C = epilogue(sum of the parts, in order). parts: (SPLITS, batch, M, N), float32 or int32.

    Grid: (blocks of M, blocks of N, batch).
    """
    block_m, block_n, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    pointers = parts + batch * p_batch + rows[:, None] * N + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), parts.dtype.element_ty)
    wait_for_inputs(PDL)
    for split in tl.static_range(SPLITS):
        acc += load_tile(pointers + split * p_split, row_mask, col_mask, EVEN_M, EVEN_N)
    let_next_start(PDL)
    finish(
        acc, c, batch, block_m * BLOCK_M, block_n * BLOCK_N, M, N, c_batch, c_row, c_col,
        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N, EVEN_M, EVEN_N, False,
    )  # fmt: skip


@triton.jit
def place(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Which block of rows and of columns a tile is: tiles run in groups of rows, so that B's stay in L2."""
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * blocks_n)
    group_size = min(blocks_m - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * blocks_n)
    return group * GROUP_M + within % group_size, within // group_size


@triton.jit
def load_tile(pointers, outer_mask, inner_mask, EVEN_OUTER: tl.constexpr, EVEN_INNER: tl.constexpr):
    """Load under the masks that are needed, zero elsewhere."""
    if EVEN_OUTER and EVEN_INNER:
        return tl.load(pointers)
    elif EVEN_OUTER:
        return tl.load(pointers, mask=inner_mask, other=0.0)
    elif EVEN_INNER:
        return tl.load(pointers, mask=outer_mask, other=0.0)
    else:
        return tl.load(pointers, mask=outer_mask & inner_mask, other=0.0)


@triton.jit
def fetch_ahead(
    b, start, block_m, block_n, M, N, b_row, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LINES: tl.constexpr
):
    """Bring this block's share of its rows of B, from `start` on, into L2: blocks with the same columns share the lines."""
    if not INTERPRETED:
        line: tl.constexpr = 1024 // b.dtype.element_ty.primitive_bitwidth
        cols = tl.minimum(block_n * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
        lines = block_m + tl.arange(0, LINES) * tl.cdiv(M, BLOCK_M)
        places = b + cols[:, None] * b_row + tl.minimum(start + lines * line, K - 1)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [places.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def multiply(
    a, b, batch, split, block_m, block_n, M, N, a_batch, a_outer, a_row, a_col, b_batch, b_row, b_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    K: tl.constexpr, K_PART: tl.constexpr, A_INNER: tl.constexpr, PROLOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, CHAINS: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """The float32 sums of one block of C over one part of K, int32 ones of int8. CHAINS * BLOCK_K divides K_PART."""
    EVEN_K: tl.constexpr = K % K_PART == 0
    row0 = block_m * BLOCK_M
    rows = row0 + tl.arange(0, BLOCK_M)
    cols = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = split * K_PART + tl.arange(0, BLOCK_K)
    row_mask, col_mask = (rows < M)[:, None], (cols < N)[None, :]
    a_rows = rows * a_row if A_INNER is None else (rows // A_INNER) * a_outer + (rows % A_INNER) * a_row
    a_tile = a + batch * a_batch + a_rows[:, None] + ks[None, :] * a_col
    b_tile = b + batch * b_batch + cols[None, :] * b_row + ks[:, None] * b_col
    sum0 = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if b.dtype.element_ty == tl.int8 else tl.float32)
    sum1, sum2, sum3 = sum0, sum0, sum0
    for k in range(0, K_PART, CHAINS * BLOCK_K):
        for chain in tl.static_range(CHAINS):
            first = k + chain * BLOCK_K
            left = ks < K - first
            x = load_tile(a_tile, row_mask, left[None, :], EVEN_M, EVEN_K)
            w = load_tile(b_tile, col_mask, left[:, None], EVEN_N, EVEN_K)
            if PROLOGUE is not None:
                x = PROLOGUE(
                    x if x.dtype.is_int() else x.to(tl.float32),
                    batch, row0, rows[:, None], first + ks[None, :], row_mask, left[None, :],
                    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
                )  # fmt: skip
                # past K x and the gate are zeros, and so is this: a choice here would move x to a layout of its own
                x = x.to(b.dtype.element_ty)
            if chain == 0:
                sum0 = dot(x, w, sum0, PRECISION)
            elif chain == 1:
                sum1 = dot(x, w, sum1, PRECISION)
            elif chain == 2:
                sum2 = dot(x, w, sum2, PRECISION)
            else:
                sum3 = dot(x, w, sum3, PRECISION)
            a_tile += BLOCK_K * a_col
            b_tile += BLOCK_K * b_col
    if CHAINS == 4:
        return (sum0 + sum1) + (sum2 + sum3)
    elif CHAINS == 2:
        return sum0 + sum1
    else:
        return sum0


@triton.jit
def finish(
    acc, c, batch, row0, col0, M, N, c_batch, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_M: tl.constexpr, EVEN_N: tl.constexpr,
    HALVES: tl.constexpr, loaded=None,
):  # fmt: skip
    """The epilogue of the block of C at (row0, col0), and its store. HALVES: one half of the columns after the other.

    loaded: the epilogue's operands, where they were loaded before the product.
    """
    if HALVES:  # in a tile of 128 sums a thread the epilogue's operands would spill
        low, high = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        finish(
            low, c, batch, row0, col0, M, N, c_batch, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N // 2, EVEN_M, EVEN_N, False,
        )  # fmt: skip
        finish(
            high, c, batch, row0, col0 + BLOCK_N // 2, M, N, c_batch, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N // 2, EVEN_M, EVEN_N, False,
        )  # fmt: skip
    else:
        rows = (row0 + tl.arange(0, BLOCK_M))[:, None]
        cols = (col0 + tl.arange(0, BLOCK_N))[None, :]
        row_mask, col_mask = rows < M, cols < N
        if loaded is not None:
            acc = EPILOGUE(
                acc, loaded, batch, row0, rows, cols, row_mask, col_mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3
            )  # fmt: skip
        elif EPILOGUE is not None:
            acc = EPILOGUE(acc, batch, row0, rows, cols, row_mask, col_mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        pointers = c + batch * c_batch + rows * c_row + cols * c_col
        y = acc.to(c.dtype.element_ty)
        if EVEN_M and EVEN_N:
            tl.store(pointers, y)
        elif EVEN_M:
            tl.store(pointers, y, mask=col_mask)
        elif EVEN_N:
            tl.store(pointers, y, mask=row_mask)
        else:
            tl.store(pointers, y, mask=row_mask & col_mask)


def twin(
    a: Tensor, b: Tensor, prologue: Callable[[Tensor], Tensor] | None, epilogue: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Tensor:
    """The same in plain PyTorch. a: (batch, M, K), b: (batch, N, K); the result is (batch, M, N) of `dtype`."""
    x = a.float() if prologue is None else prologue(a.float()).to(b.dtype).float()
    return epilogue(x @ b.float().transpose(1, 2)).to(dtype)
