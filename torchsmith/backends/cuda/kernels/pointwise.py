"""Pointwise programs over whole tensors: BODY loads its operands at the elements' places, computes, and stores.

`pointwise` runs over the elements in the order of the output's memory; `tiled` over tiles of two dimensions, for operands that
lie in another order than the output: both sides are then touched in whole lines, and Triton transposes through shared memory.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, wait_for_inputs


@triton.jit
def pointwise(
    N,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    BODY: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Elements index of N. Grid: blocks of N."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < N
    wait_for_inputs(PDL)
    let_next_start(PDL)
    BODY(index, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)


@triton.jit
def tiled(
    R, C,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    BODY: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows lie together in an operand, columns in the output. Grid: outer elements * blocks of R * blocks of C."""
    blocks_r, blocks_c = tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0)
    outer = block // (blocks_r * blocks_c)
    rows = (block // blocks_c) % blocks_r * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    cols = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    row_mask, col_mask = rows < R, cols < C
    mask = row_mask & col_mask
    wait_for_inputs(PDL)
    let_next_start(PDL)
    BODY(outer, rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)


def twin(
    program: Callable[..., Tensor], operands: Sequence[Tensor], dtype: torch.dtype, strides: Sequence[int] | None = None
) -> Tensor:
    """The same in plain PyTorch: floating operands widened to float32, broadcast, the result of `dtype`, with those strides."""
    wide = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in operands]
    result = program(*wide).to(dtype)
    if strides is None:
        return result
    placed = torch.empty_strided(result.shape, list(strides), dtype=dtype)
    return placed.copy_(result)
