"""Sums, means, extremes, products and norms along rows, with what comes before and after in registers."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, maximum, minimum, wait_for_inputs


@triton.jit
def multiply(a, b):
    return a * b


@triton.jit
def reduce(
    y, ROWS, COLS, COUNT,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    LOAD: tl.constexpr, EPILOGUE: tl.constexpr, PLACE: tl.constexpr, SPLIT: tl.constexpr,
    PREPARE: tl.constexpr, COMBINE: tl.constexpr, FINISH: tl.constexpr, IDENTITY: tl.constexpr, REGISTER: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows, BLOCK_C columns at a time. Grid: (blocks of rows, runs of SPLIT blocks of columns).

    PREPARE: "", "abs" or "square"; COMBINE: "sum", "max", "min" or "prod", from IDENTITY; FINISH: "", "mean" (over COUNT) or
    "sqrt". REGISTER: what is added up, "fp32", "i32" or "i64". Where EPILOGUE is None, y is scratch memory (runs, rows).
    """
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    row_mask = rows < ROWS
    first = tl.program_id(1) * SPLIT * BLOCK_C
    end = min(first + SPLIT * BLOCK_C, COLS)
    if REGISTER == "fp32":
        acc = tl.full((BLOCK_R, BLOCK_C), IDENTITY, tl.float32)
    elif REGISTER == "i64":
        acc = tl.full((BLOCK_R, BLOCK_C), IDENTITY, tl.int64)
    else:
        acc = tl.full((BLOCK_R, BLOCK_C), IDENTITY, tl.int32)
    wait_for_inputs(PDL)
    for start in range(first, end, BLOCK_C):
        cols = start + tl.arange(0, BLOCK_C)[None, :]
        col_mask = cols < COLS
        mask = row_mask & col_mask
        x, _ = LOAD(rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        if PREPARE == "abs":
            x = tl.abs(x)
        elif PREPARE == "square":
            x = x * x
        x = tl.where(mask, x.to(acc.dtype), IDENTITY)
        if COMBINE == "sum":
            acc += x
        elif COMBINE == "max":
            acc = maximum(acc, x)
        elif COMBINE == "min":
            acc = minimum(acc, x)
        else:
            acc *= x
    let_next_start(PDL)
    if COMBINE == "sum":
        out = tl.sum(acc, 1)
    elif COMBINE == "prod":
        out = tl.reduce(acc, 1, multiply)
    else:
        out = tl.max(acc, 1) if COMBINE == "max" else tl.min(acc, 1)
        if REGISTER == "fp32":
            out = tl.where(tl.max((acc != acc).to(tl.int32), 1) > 0, float("nan"), out)
    out = out[:, None]
    if FINISH == "mean":
        out = out / COUNT
    elif FINISH == "sqrt":
        out = tl.sqrt_rn(out)
    if EPILOGUE is not None:
        out = EPILOGUE(out, rows, row_mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        where = rows * 0 + PLACE(rows, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    else:
        where = tl.program_id(1) * ROWS + rows
    tl.store(y + where, out.to(y.dtype.element_ty), mask=row_mask)


def twin(x: Tensor, function: str, dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch, for floating x. x: (rows, columns); the result has a number for each row, of `dtype`."""
    wide = x.float()
    found = {
        "sum": lambda: wide.sum(1),
        "mean": lambda: wide.sum(1) / x.shape[1],
        "max": lambda: wide.amax(1),
        "min": lambda: wide.amin(1),
        "prod": lambda: wide.prod(1),
        "l1": lambda: wide.abs().sum(1),
        "l2": lambda: wide.square().sum(1).sqrt(),
    }
    return found[function]().to(dtype)
