"""Softmax and its logarithm along rows, with what comes before (scale, mask) and after in registers."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, wait_for_inputs


@triton.jit
def softmax(
    y, ROWS, COLS,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    LOAD: tl.constexpr, EPILOGUE: tl.constexpr, PLACE: tl.constexpr, LOG: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_R whole rows in registers. Grid: blocks of rows."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    cols = tl.arange(0, BLOCK_C)[None, :]
    row_mask = rows < ROWS
    everywhere = tl.zeros((BLOCK_R, BLOCK_C), tl.int32)  # an output's offset may lack an index whose dimensions have size 1
    col_mask = cols < COLS
    mask = row_mask & col_mask
    wait_for_inputs(PDL)
    x, _ = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    let_next_start(PDL)
    x = tl.where(mask, x, float("-inf"))
    below = x - tl.max(x, 1)[:, None]
    powers = tl.exp(below)
    total = tl.sum(powers, 1)[:, None]
    acc = below - tl.log(total) if LOG else powers / total
    out = EPILOGUE(acc, x, rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    where = everywhere + PLACE(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    tl.store(y + where, out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def softmax_long(
    y, ROWS, COLS,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    LOAD: tl.constexpr, EPILOGUE: tl.constexpr, PLACE: tl.constexpr, LOG: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of any length, walked through twice: every lane keeps its greatest element and its sum (online softmax)."""
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    row_mask = rows < ROWS
    everywhere = tl.zeros((BLOCK_R, BLOCK_C), tl.int32)  # an output's offset may lack an index whose dimensions have size 1
    greatest = tl.full((BLOCK_R, BLOCK_C), float("-inf"), tl.float32)
    totals = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    wait_for_inputs(PDL)
    for start in range(0, COLS, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)[None, :]
        col_mask = cols < COLS
        mask = row_mask & col_mask
        x, _ = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        x = tl.where(mask, x, float("-inf"))
        higher = tl.maximum(greatest, x)
        # a lane that has seen nothing but -inf has no sum yet
        base = tl.where(higher == float("-inf"), 0.0, higher)
        totals = totals * tl.exp(greatest - base) + tl.exp(x - base)
        greatest = higher
    let_next_start(PDL)
    top = tl.max(greatest, 1)[:, None]
    total = tl.sum(totals * tl.exp(greatest - top), 1)[:, None]
    for start in range(0, COLS, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)[None, :]
        col_mask = cols < COLS
        mask = row_mask & col_mask
        x, _ = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        acc = x - top - tl.log(total) if LOG else tl.exp(x - top) / total
        out = EPILOGUE(acc, x, rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        where = everywhere + PLACE(rows, cols, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        tl.store(y + where, out.to(y.dtype.element_ty), mask=mask)


def twin(x: Tensor, log: bool, dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch. x: (rows, columns); the result is of `dtype`."""
    below = x.float() - x.float().amax(1, keepdim=True)
    total = below.exp().sum(1, keepdim=True)
    return (below - total.log() if log else below.exp() / total).to(dtype)
