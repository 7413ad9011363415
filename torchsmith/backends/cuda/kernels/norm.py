"""Layer, RMS and group normalisation: (x - mean) / sqrt(variance + eps) * weight + bias, and an epilogue.

What x is (a sum of residuals, rows of a table, ...) and where everything lies are hooks of (rows, columns), so that one kernel
serves every layout. Statistics are float32, in two passes over registers.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, wait_for_inputs


@triton.jit
def norm(
    y, also, extra, ROWS, COLS,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    LOAD: tl.constexpr, AFFINE: tl.constexpr, EARLY: tl.constexpr, EPILOGUE: tl.constexpr, PLACE: tl.constexpr,
    PLACE_ALSO: tl.constexpr, PLACE_EXTRA: tl.constexpr, EPS: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_R whole rows in registers. Grid: blocks of rows. EARLY: weights are constants, and are loaded before the wait.

    EPILOGUE gives what y takes, and what `also` takes, which lies as PLACE_ALSO says, or None.
    """
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    cols = tl.arange(0, BLOCK_C)[None, :]
    row_mask = rows < ROWS
    everywhere = tl.zeros((BLOCK_R, BLOCK_C), tl.int32)  # an output's offset may lack an index whose dimensions have size 1
    col_mask = cols < COLS
    mask = row_mask & col_mask
    if AFFINE is not None and EARLY:
        weight, bias = AFFINE(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    wait_for_inputs(PDL)
    x, more = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    x = tl.where(mask, x, 0.0)
    if AFFINE is not None and not EARLY:
        weight, bias = AFFINE(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    let_next_start(PDL)
    if PLACE_EXTRA is not None:
        where = everywhere + PLACE_EXTRA(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        tl.store(extra + where, more.to(extra.dtype.element_ty), mask=mask)
    centred = x
    if CENTRED:
        centred = tl.where(mask, x - (tl.sum(x, 1) / COLS)[:, None], 0.0)
    variance = (tl.sum(centred * centred, 1) / COLS)[:, None]
    acc = centred * tl.rsqrt(variance + EPS)
    if AFFINE is not None:
        acc = acc * weight + bias
    out, second = EPILOGUE(acc, x, rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    tl.store(
        y + everywhere + PLACE(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3), out.to(y.dtype.element_ty), mask=mask
    )
    if PLACE_ALSO is not None:
        where = everywhere + PLACE_ALSO(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        tl.store(also + where, second.to(also.dtype.element_ty), mask=mask)


@triton.jit
def norm_long(
    y, also, extra, ROWS, COLS,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    LOAD: tl.constexpr, AFFINE: tl.constexpr, EARLY: tl.constexpr, EPILOGUE: tl.constexpr, PLACE: tl.constexpr,
    PLACE_ALSO: tl.constexpr, PLACE_EXTRA: tl.constexpr, EPS: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of any length, walked through twice: every lane keeps the mean and the squares of what it has seen (Welford)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    row_mask = rows < ROWS
    everywhere = tl.zeros((BLOCK_R, BLOCK_C), tl.int32)  # an output's offset may lack an index whose dimensions have size 1
    mean = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    wait_for_inputs(PDL)
    seen = 0.0
    for start in range(0, COLS, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)[None, :]
        col_mask = cols < COLS
        mask = row_mask & col_mask
        x, more = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        if PLACE_EXTRA is not None:
            where = everywhere + PLACE_EXTRA(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
            tl.store(extra + where, more.to(extra.dtype.element_ty), mask=mask)
        if CENTRED:
            seen += 1.0
            delta = tl.where(mask, x - mean, 0.0)
            mean += delta / seen
            squares += delta * tl.where(mask, x - mean, 0.0)
        else:
            squares += tl.where(mask, x * x, 0.0)
    let_next_start(PDL)
    centre = tl.zeros((BLOCK_R, 1), tl.float32)
    if CENTRED:
        # lane c has seen the columns c, c + BLOCK_C, ...
        lanes = tl.arange(0, BLOCK_C)[None, :]
        count = tl.where(lanes < COLS, (COLS - lanes + BLOCK_C - 1) // BLOCK_C, 0).to(tl.float32)
        centre = (tl.sum(mean * count, 1) / COLS)[:, None]
        apart = mean - centre
        squares += count * apart * apart
    scale = tl.rsqrt((tl.sum(squares, 1) / COLS)[:, None] + EPS)
    for start in range(0, COLS, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)[None, :]
        col_mask = cols < COLS
        mask = row_mask & col_mask
        x, more = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        acc = (x - centre) * scale
        if AFFINE is not None:
            weight, bias = AFFINE(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
            acc = acc * weight + bias
        out, second = EPILOGUE(acc, x, rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        where = everywhere + PLACE(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        tl.store(y + where, out.to(y.dtype.element_ty), mask=mask)
        if PLACE_ALSO is not None:
            where = everywhere + PLACE_ALSO(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
            tl.store(also + where, second.to(also.dtype.element_ty), mask=mask)


def twin(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool, dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch. x: (rows, columns); weight, bias: (columns,); the result is of `dtype`."""
    wide = x.float()
    wide = wide - wide.mean(1, keepdim=True) if centred else wide
    result = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    result = result if weight is None else result * weight.float()
    return (result if bias is None else result + bias.float()).to(dtype)
