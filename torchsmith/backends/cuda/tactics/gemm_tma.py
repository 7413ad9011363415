"""Large linear layers and 1×1 convolutions through `kernels/gemm_tma.py`, on sm_90 and later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.gemm_tma import DESCRIPTOR_BYTES, gemm_tma
from torchsmith.backends.cuda.layout import byte_alignment, divisible
from torchsmith.backends.cuda.program import HookWriter
from torchsmith.backends.cuda.tactics.gemm import ceildiv, even
from torchsmith.backends.cuda.tactics.gemm_configs import PROCESSORS
from torchsmith.backends.cuda.tactics.gemm_problem import Problem, epilogue_of, problem_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same

LEAST_ARCH = 90
LEAST_WORK = 1 << 29  # multiplications: below, blocks are too few for a kernel whose start takes longer
MANY_ROWS = 1 << 14  # what an unknown number is taken for
RATE = 1900  # products of a multiprocessor in a cycle (of an H100's 2048)
EPILOGUE = 0.1  # cycles of an epilogue for each element


@dataclass(frozen=True)
class GemmTmaConfig:
    """programs: how many blocks go through the tiles. parts: of a tile's columns, for the epilogue. group_m: see `place`.

    store: whether the result goes through a descriptor too. flatten: whether loads run on from one tile to the next.
    specialize: whether a warp of its own loads.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    programs: int = PROCESSORS
    parts: int = 2
    group_m: int = 8
    store: bool = False
    flatten: bool = True
    specialize: bool = False


class GemmTmaTemplate:
    name = "gemm_tma"
    kinds = frozenset({"gemm", "convolution", "Linear", "MatMul", "Convolution"})
    config_type = GemmTmaConfig

    def configs(self, e: Emission) -> Sequence[GemmTmaConfig]:
        if e.arch < LEAST_ARCH:
            raise Unsupported(f"tensor descriptors take sm_{LEAST_ARCH}, and the target is sm_{e.arch}")
        p = described(e)
        m = p.m if isinstance(p.m, int) else e.likely(p.m, MANY_ROWS)
        if m * p.n * p.k < LEAST_WORK:
            raise Unsupported(f"the product of {m} by {p.n} by {p.k} is not large")
        epilogue_of(e, p, HookWriter(e.views, e.constant), 128, 128)  # whether the hook can be written
        return gemm_tma_configs(m, p.n, p.k, stores(e, p))

    def emit(self, e: Emission, config: GemmTmaConfig) -> None:
        p, c = described(e), config
        if c.store and not stores(e, p):
            raise Unsupported(f"the rows of {p.output} do not start at multiples of 16 bytes")
        writer = HookWriter(e.views, e.constant)
        epilogue = epilogue_of(e, p, writer, c.block_m, c.block_n // c.parts)
        tiles = ceildiv(p.m, c.block_m) * -(-p.n // c.block_n)
        programs = min(c.programs, tiles) if isinstance(tiles, int) else c.programs
        _, c_row, c_col = p.c_strides
        e.launch(
            gemm_tma,
            (programs,),
            {
                **dict(a=p.a, b=p.b, c=p.output, M=p.m, N=p.n, K=p.k, EPILOGUE=epilogue, PDL=True),
                **dict(a_row=p.a_rows.stride, b_row=p.b_strides[1], c_row=c_row, c_col=c_col),
                **dict(BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, GROUP_M=c.group_m, PARTS=c.parts),
                **dict(
                    EVEN_M=even(p.m, c.block_m),
                    EVEN_N=even(p.n, c.block_n),
                    STORE=c.store,
                    FLATTEN=c.flatten,
                    SPECIALIZE=c.specialize,
                ),
                **writer.arguments(),
            },
            writes=[p.output],
            num_warps=c.num_warps,
            num_stages=c.num_stages,
            scratch_bytes=descriptors(c) * DESCRIPTOR_BYTES,
        )


def descriptors(c: GemmTmaConfig) -> int:
    """Of A, of B, and of what is stored: two where warps have roles, as each of two groups has a half of the tile."""
    return 2 + (0 if not c.store else 2 if c.specialize else 1)


def described(e: Emission) -> Problem:
    """The node as one product whose operands descriptors can describe. Raises Unsupported where it is none."""
    p = problem_of(e)
    item_bytes = p.a.type.dtype.itemsize
    if p.parts.before:
        raise Unsupported("the copy engine computes nothing before the product")
    if p.a.type.dtype not in (torch.float16, torch.bfloat16):
        raise Unsupported(f"a product of {p.a.type.dtype}")
    if not same(p.batch, 1):
        raise Unsupported(f"a batch of {p.batch} products")
    if p.a_rows.inner is not None:
        raise Unsupported("the rows of A are not one dimension")
    if not same(p.a_col, 1) or not same(p.b_strides[2], 1):
        raise Unsupported("the elements of a row of A, or of B, do not follow each other")
    for value, stride in ((p.a, p.a_rows.stride), (p.b, p.b_strides[1])):
        aligned = byte_alignment(e.view(value), value.type.dtype) >= 16
        if not aligned or not divisible(stride, 16 // item_bytes) or same(stride, 0):
            raise Unsupported(f"the rows of {value} do not start at multiples of 16 bytes")
    return p


def stores(e: Emission, p: Problem) -> bool:
    """Whether C's rows are such that a descriptor describes them."""
    _, row, col = p.c_strides
    dtype = p.output.type.dtype
    aligned = byte_alignment(e.view(p.output), dtype) >= 16 and divisible(row, 16 // dtype.itemsize)
    return aligned and same(col, 1) and not same(row, 0)


def gemm_tma_configs(m: int, n: int, k: int, dense: bool) -> list[GemmTmaConfig]:
    """The least by a count of tiles first. dense: whether C may go through a descriptor.

    Two blocks of four warps on a multiprocessor compute during each other's epilogues; one block with a wider tile loads less.
    """
    guessed = [
        GemmTmaConfig(128, 256, 64, 8, 4, parts=4, store=dense),
        GemmTmaConfig(128, 256, 64, 8, 3, parts=2, store=dense),
        # with two parts a residual in the epilogue takes the shared memory of the second block
        GemmTmaConfig(128, 128, 64, 4, 3, programs=2 * PROCESSORS, parts=4, store=dense),
        GemmTmaConfig(128, 128, 64, 8, 4, parts=2, store=dense),
    ]
    others = [
        GemmTmaConfig(256, 128, 64, 8, 4, parts=4, store=dense),
        GemmTmaConfig(128, 256, 64, 8, 3, parts=2, group_m=4),
        GemmTmaConfig(128, 128, 64, 4, 3, programs=2 * PROCESSORS, parts=2),
    ]
    return [*sorted(guessed, key=lambda c: cycles(c, m, n, k)), *others]


def cycles(c: GemmTmaConfig, m: int, n: int, k: int) -> float:
    """What the product takes, roughly: of a block, its tiles' products, and their epilogues where nothing runs beside them."""
    tiles = -(-m // c.block_m) * -(-n // c.block_n)
    shared = -(-c.programs // PROCESSORS)
    area = c.block_m * c.block_n
    product = area * -(-k // c.block_k) * c.block_k / (RATE if c.block_n == 256 else 0.9 * RATE)
    return -(-tiles // c.programs) * (product * shared + area * EPILOGUE)


TEMPLATE = GemmTmaTemplate()
