"""Large matrix products whose tiles the copy engine fetches through tensor descriptors (TMA, sm_90 and later).

C[m, n] = epilogue(sum over k of A[m, k] * B[n, k]), K contiguous in both, rows any multiple of 16 bytes apart.
Source: the structure is that of Triton's tutorial 09, persistent matrix products.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import dot, let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.gemm import finish, place

DESCRIPTOR_BYTES = 128  # what a descriptor takes of a program's scratch memory, and the alignment that it needs


@triton.jit
def gemm_tma(
    a, b, c, M, N, a_row, b_row, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    K: tl.constexpr, EPILOGUE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, PARTS: tl.constexpr,
    STORE: tl.constexpr, FLATTEN: tl.constexpr, SPECIALIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As many blocks as fit the device, each going through tiles of C. Grid: (blocks).

    Past M, N and K the copy engine fills in zeros. The descriptors are made before what comes before has ended, in scratch
    memory that is this launch's alone. PARTS: 1, 2 or 4 parts of a tile's columns that the epilogue takes one after the other.
    STORE: C goes through a descriptor too, while the next tile is computed; its rows then are as A's and B's are.
    FLATTEN: tiles and steps of K are one loop, so that a tile's first loads run during the epilogue of the tile before.
    SPECIALIZE: a warp of its own for the loads.
    """
    a_tiles = tl.make_tensor_descriptor(a, [M, K], [a_row, 1], [BLOCK_M, BLOCK_K])
    b_tiles = tl.make_tensor_descriptor(b, [N, K], [b_row, 1], [BLOCK_N, BLOCK_K])
    c_tiles = tl.make_tensor_descriptor(c, [M, N], [c_row, 1], [BLOCK_M, BLOCK_N // PARTS]) if STORE else None
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    wait_for_inputs(PDL)
    let_next_start(PDL)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN, warp_specialize=SPECIALIZE):
        block_m, block_n = place(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for step in range(tl.cdiv(K, BLOCK_K)):
            x = a_tiles.load([block_m * BLOCK_M, step * BLOCK_K])
            w = b_tiles.load([block_n * BLOCK_N, step * BLOCK_K])
            acc = dot(x, w.T, acc, "ieee")
        finish_parts(
            acc, c, c_tiles, block_m * BLOCK_M, block_n * BLOCK_N, M, N, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N, EVEN_M, EVEN_N, PARTS,
        )  # fmt: skip


@triton.jit
def finish_parts(
    acc, c, c_tiles, row0, col0, M, N, c_row, c_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    EPILOGUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN_M: tl.constexpr, EVEN_N: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """`finish`, one part of the columns after the other."""
    if PARTS > 1:
        low, high = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        finish_parts(
            low, c, c_tiles, row0, col0, M, N, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N // 2, EVEN_M, EVEN_N, PARTS // 2,
        )  # fmt: skip
        finish_parts(
            high, c, c_tiles, row0, col0 + BLOCK_N // 2, M, N, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N // 2, EVEN_M, EVEN_N, PARTS // 2,
        )  # fmt: skip
    elif c_tiles is not None:
        rows = (row0 + tl.arange(0, BLOCK_M))[:, None]
        cols = (col0 + tl.arange(0, BLOCK_N))[None, :]
        y = EPILOGUE(acc, 0, row0, rows, cols, rows < M, cols < N, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
        c_tiles.store([row0, col0], y.to(c.dtype.element_ty))
    else:
        finish(
            acc, c, 0, row0, col0, M, N, 0, c_row, c_col,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3, EPILOGUE, BLOCK_M, BLOCK_N, EVEN_M, EVEN_N, False,
        )  # fmt: skip


def twin(a: Tensor, b: Tensor, epilogue: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch. a: (M, K), b: (N, K); the result is (M, N) of `dtype`."""
    return epilogue(a.float() @ b.float().T).to(dtype)
