"""Convolution of channels-last pictures as a matrix product that gathers its rows: no picture is ever unfolded in memory.

y[m, k] = epilogue(sum over taps t and channels c of x[pixel of m under t, c] * w[k, t, c]); m counts (picture, row, column) of
the output. A long sum over few pixels is split over blocks: each writes its part in float32, and `sum_parts` adds them in order.
Products of int8 are summed in int32.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import INTERPRETED, dot, let_next_start, wait_for_inputs


@triton.jit
def fetch_ahead(w, block, blocks_n, group, local, M, N, start, length, BLOCK_M: tl.constexpr, LINES: tl.constexpr):
    """Bring this block's share of its rows of w into L2: LINES 128-byte lines of each, in turns with blocks of the same rows."""
    if not INTERPRETED:
        line: tl.constexpr = 1024 // w.dtype.element_ty.primitive_bitwidth
        lines = block // blocks_n + tl.arange(0, LINES) * tl.cdiv(M, BLOCK_M)
        columns = tl.minimum(start + lines * line, length - 1)
        places = w + (group * N + tl.minimum(local, N - 1))[:, None] * length + columns[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [places.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def convolution(
    x, w, y, M, N, C, H, W, OH, OW,
    x_image, x_row, x_pixel, y_part, y_row, y_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PADDED: tl.constexpr, CHANNEL_BLOCKS: tl.constexpr, SPLIT: tl.constexpr,
    EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of y. Grid: (blocks of M * blocks of N, groups, SPLIT).

    N, C: output and input channels of a group. x has its channels innermost. w: (groups * N, R * S, CHANNEL_BLOCKS * BLOCK_K),
    zero beyond C. PADDED: whether any tap may lie outside the picture. EPILOGUE: None where y takes parts of the sum. AHEAD: how
    many 128-byte lines of each of its rows of w a block brings into L2 before it waits for what comes before it; blocks with the
    same rows share the lines among themselves.
    """
    STEPS: tl.constexpr = R * S * CHANNEL_BLOCKS
    PER_PART: tl.constexpr = (STEPS + SPLIT - 1) // SPLIT
    blocks_n = tl.cdiv(N, BLOCK_N)
    block, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = (block // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    local = (block % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = rows < M, local < N
    cols = group * N + local
    first = part * PER_PART

    w_tile = w + cols[None, :] * (STEPS * BLOCK_K) + first * BLOCK_K + ks[:, None]
    if AHEAD > 0:
        fetch_ahead(w, block, blocks_n, group, local, M, N, first * BLOCK_K, STEPS * BLOCK_K, BLOCK_M, AHEAD)

    image = rows // (OH * OW)
    pixel = rows % (OH * OW)
    h = pixel // OW * STRIDE_H - PAD_H
    v = pixel % OW * STRIDE_W - PAD_W
    x_tile = x + (image * x_image + h * x_row + v * x_pixel)[:, None] + group * C + ks[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32)
    wait_for_inputs(PDL)
    for index in range(0, PER_PART):
        step = first + index
        tap = step // CHANNEL_BLOCKS
        channel = step % CHANNEL_BLOCKS * BLOCK_K
        down, right = tap // S * DILATION_H, tap % S * DILATION_W
        inside = row_mask
        if PADDED:
            inside = inside & ((h + down).to(tl.uint32) < H) & ((v + right).to(tl.uint32) < W)
        if STEPS % SPLIT != 0:
            inside = inside & (step < STEPS)
        mask = inside[:, None]
        if C % BLOCK_K != 0:
            mask = mask & (ks < C - channel)[None, :]
        a = tl.load(x_tile + (down * x_row + right * x_pixel + channel), mask=mask, other=0.0)
        keep = col_mask[None, :]
        if STEPS % SPLIT != 0:
            keep = keep & (step < STEPS)
        b = tl.load(w_tile + index * BLOCK_K, mask=keep, other=0.0)
        acc = dot(a, b, acc, PRECISION)
    let_next_start(PDL)
    if EPILOGUE is not None:
        acc = EPILOGUE(
            acc, rows[:, None], cols[None, :], row_mask[:, None], col_mask[None, :],
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
        )  # fmt: skip
    place = part * y_part + rows[:, None] * y_row + cols[None, :] * y_col
    tl.store(y + place, acc.to(y.dtype.element_ty), mask=row_mask[:, None] & col_mask[None, :])


@triton.jit
def sum_parts(
    parts, y, M, N, y_row, y_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    SPLIT: tl.constexpr, EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = epilogue(sum of the parts, first to last). parts: (SPLIT, M, N). Grid: (blocks of M, blocks of N)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    row_mask, col_mask = rows < M, cols < N
    mask = row_mask & col_mask
    wait_for_inputs(PDL)
    let_next_start(PDL)
    acc = tl.zeros((BLOCK_M, BLOCK_N), parts.dtype.element_ty)
    for part in tl.static_range(SPLIT):
        acc += tl.load(parts + part * M * N + rows * N + cols, mask=mask, other=0.0)
    acc = EPILOGUE(acc, rows, cols, row_mask, col_mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    tl.store(y + rows * y_row + cols * y_col, acc.to(y.dtype.element_ty), mask=mask)


def twin(
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    epilogue: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> Tensor:
    """The same in plain PyTorch. x: (N, C, H, W), w: (K, C / groups, R, S); the result is (N, K, OH, OW) of `dtype`."""
    x = torch.nn.functional.pad(x.float(), [p for pair in reversed(padding) for p in pair])
    return epilogue(torch.nn.functional.conv2d(x, w.float(), None, tuple(stride), 0, tuple(dilation), groups)).to(dtype)
