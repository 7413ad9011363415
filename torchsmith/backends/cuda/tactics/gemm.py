"""Linear layers, 1×1 convolutions and batched matrix products through `kernels/gemm.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.float8 import MOST_FAST_TERMS
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.kernels.gemm import gemm, gemm_persistent, gemm_sum
from torchsmith.backends.cuda.program import HookWriter
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig, gemm_configs
from torchsmith.backends.cuda.tactics.gemm_problem import Problem, early_epilogue_of, epilogue_of, problem_of, prologue_of
from torchsmith.ir.dim import Dim, bind, floordiv, product, symbols_in
from torchsmith.ir.graph import Value

SUM_BLOCK_M, SUM_BLOCK_N = 8, 64
USUAL_ROWS, USUAL_BATCH = 1 << 12, 8  # what guesses take an unknown size for
MOST_PARTS = 1 << 24  # elements of scratch memory for parts of sums, at the greatest of dynamic sizes


class GemmTemplate:
    name = "gemm"
    kinds = frozenset({"gemm", "convolution", "Linear", "MatMul", "Convolution"})
    config_type = GemmConfig

    def configs(self, e: Emission) -> Sequence[GemmConfig]:
        p = problem_of(e)
        writer = HookWriter(e.views, e.constant)
        epilogue_of(e, p, writer, 16, 16)  # whether the hooks can be written
        prologue_of(e, p, writer, 16, 16)
        item_bytes, gated = p.b.type.dtype.itemsize, bool(p.parts.before)
        m, batch = e.likely(p.m, USUAL_ROWS), e.likely(p.batch, USUAL_BATCH)
        found = gemm_configs(m, p.n, p.k, batch, item_bytes, p.constant and isinstance(p.m, int), gated)
        return [c for c in found if c.split_k == 1 or parts_fit(e, p, c.split_k)]

    def emit(self, e: Emission, config: GemmConfig) -> None:
        p = problem_of(e)
        if config.split_k > 1:
            emit_split(e, p, config)
        else:
            emit_whole(e, p, config)


def emit_whole(e: Emission, p: Problem, c: GemmConfig) -> None:
    """One kernel."""
    depth = c.block_k * c.chains
    part = -(-p.k // depth) * depth
    writer = HookWriter(e.views, e.constant)
    if is_early(c):
        early, epilogue = early_epilogue_of(e, p, writer, c.block_m, c.block_n)
    else:
        early, epilogue = None, epilogue_of(e, p, writer, c.block_m, c.block_n)
    prologue = prologue_of(e, p, writer, c.block_m, part)
    tiles = ceildiv(p.m, c.block_m) * -(-p.n // c.block_n)
    c_batch, c_row, c_col = p.c_strides
    e.launch(
        gemm_persistent if c.programs else gemm,
        (c.programs, p.batch) if c.programs else (tiles, p.batch),
        {
            **operands(p, c, part),
            **dict(c=p.output, c_split=0, c_batch=c_batch, c_row=c_row, c_col=c_col),
            **dict(PROLOGUE=prologue, EARLY=early, EPILOGUE=epilogue),
            **writer.arguments(),
        },
        writes=[p.output],
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )


def emit_split(e: Emission, p: Problem, c: GemmConfig) -> None:
    """One kernel that sums parts of K, and one that adds them up."""
    parts = emit_parts(e, p, c)
    splits, (split, batch, *_) = parts.type.shape[0], e.view(parts).strides
    writer = HookWriter(e.views, e.constant)
    epilogue = epilogue_of(e, p, writer, SUM_BLOCK_M, SUM_BLOCK_N)
    c_batch, c_row, c_col = p.c_strides
    e.launch(
        gemm_sum,
        (ceildiv(p.m, SUM_BLOCK_M), -(-p.n // SUM_BLOCK_N), p.batch),
        {
            **dict(parts=parts, c=p.output, M=p.m, N=p.n, p_split=split, p_batch=batch),
            **dict(c_batch=c_batch, c_row=c_row, c_col=c_col, EPILOGUE=epilogue, SPLITS=splits, PDL=True),
            **dict(BLOCK_M=SUM_BLOCK_M, BLOCK_N=SUM_BLOCK_N, EVEN_M=even(p.m, SUM_BLOCK_M), EVEN_N=even(p.n, SUM_BLOCK_N)),
            **writer.arguments(),
        },
        writes=[p.output],
        num_warps=4,
    )


def emit_parts(e: Emission, p: Problem, c: GemmConfig) -> Value:
    """The kernel that sums parts of K; gives the sums, (parts, batch, M, N) float32, or int32 of int8."""
    depth = c.block_k * c.chains
    part = -(-p.k // (depth * c.split_k)) * depth
    dtype = torch.int32 if p.b.type.dtype == torch.int8 else torch.float32
    parts = e.temporary((-(-p.k // part), p.batch, p.m, p.n), dtype, "parts")
    split, batch, row, col = e.view(parts).strides
    writer = HookWriter(e.views, e.constant)
    prologue = prologue_of(e, p, writer, c.block_m, part)
    tiles = ceildiv(p.m, c.block_m) * -(-p.n // c.block_n)
    e.launch(
        gemm,
        (tiles, p.batch, parts.type.shape[0]),
        {
            **operands(p, c, part),
            **dict(c=parts, c_split=split, c_batch=batch, c_row=row, c_col=col),
            **dict(PROLOGUE=prologue, EARLY=None, EPILOGUE=None),
            **writer.arguments(),
        },
        writes=[parts],
        num_warps=c.num_warps,
        num_stages=c.num_stages,
    )
    return parts


def operands(p: Problem, c: GemmConfig, part: int) -> dict[str, Any]:
    """The kernel's arguments but for C and the hooks. part: how much of K a block sums."""
    b_batch, b_row, b_col = p.b_strides
    precision = "promoted" if p.precision == "fast" and part // c.chains > MOST_FAST_TERMS else p.precision
    return {
        **dict(a=p.a, b=p.b, M=p.m, N=p.n, K=p.k, K_PART=part, A_INNER=p.a_rows.inner),
        **dict(a_batch=p.a_batch, a_outer=p.a_rows.outer, a_row=p.a_rows.stride, a_col=p.a_col),
        **dict(b_batch=b_batch, b_row=b_row, b_col=b_col, PRECISION=precision, PDL=True),
        **dict(BLOCK_M=c.block_m, BLOCK_N=c.block_n, BLOCK_K=c.block_k, CHAINS=c.chains, GROUP_M=c.group_m),
        **dict(EVEN_M=even(p.m, c.block_m), EVEN_N=even(p.n, c.block_n), HALVES=halves(c), AHEAD=lines_ahead(p, c, part)),
    }


def lines_ahead(p: Problem, c: GemmConfig, part: int) -> int:
    """How many 128-byte lines of each of its rows of B a block brings into L2, of those that blocks with its columns share."""
    if not c.ahead or not p.constant or p.b_strides[2] != 1 or not isinstance(p.m, int):
        return 0
    lines = -(-part * p.b.type.dtype.itemsize // (128 * -(-p.m // c.block_m)))
    return 1 << max(0, lines - 1).bit_length()


def halves(c: GemmConfig) -> bool:
    """Whether threads hold so many sums that the epilogue's operands would not fit beside them."""
    return c.block_m * c.block_n >= 4096 * c.num_warps and c.block_n >= 32


def is_early(c: GemmConfig) -> bool:
    """Whether the epilogue's operands are loaded before the product: threads hold few sums, so there is room for them."""
    return not c.programs and c.block_m * c.block_n <= 16 * 32 * c.num_warps


def even(size: Dim, block: int) -> bool:
    return isinstance(size, int) and size % block == 0


def parts_fit(e: Emission, p: Problem, splits: int) -> bool:
    """Whether a sum may be split: how much scratch memory its parts take at most is known, and little."""
    rows = product((p.batch, p.m))
    if isinstance(rows, int):
        return True
    ranges = e.node.op.body.ranges if isinstance(e.node.op, Fused) else {}
    highs = {name: high for name, (_, high) in ranges.items() if high is not None}
    return symbols_in(rows) <= highs.keys() and int(bind(rows, highs)) * p.n * splits <= MOST_PARTS


def ceildiv(size: Dim, by: int) -> Dim:
    return -(-size // by) if isinstance(size, int) else floordiv(size + by - 1, by)


TEMPLATE = GemmTemplate()
