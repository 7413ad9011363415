"""Linear layers and 1×1 convolutions of a few rows, with constant weights, through `kernels/gemv.py`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.gemv import gemv
from torchsmith.backends.cuda.program import HookWriter
from torchsmith.backends.cuda.tactics.gemm_configs import L2_BYTES_EACH, PROCESSORS, up
from torchsmith.backends.cuda.tactics.gemm_problem import Problem, early_epilogue_of, problem_of
from torchsmith.errors import Unsupported

MOST_ROWS = 4  # with more, tensor cores do in less what threads do one row after the other
MOST_BYTES = 192  # of weights that a thread holds, each warp having whole rows
LOAD_BYTES = 512  # of a row of weights that a warp loads at once


@dataclass(frozen=True)
class GemvConfig:
    """A warp makes `columns` of the product's columns. Sums of int8 are float32 too: exact while they are below 2**24."""

    columns: int
    num_warps: int


class GemvTemplate:
    name = "gemv"
    kinds = frozenset(
        {
            *("gemm", "convolution", "Linear", "Convolution"),
            *("gemm_int8", "IntegerLinear", "IntegerConvolution", "gemm_float8", "Float8Linear"),
        }
    )
    config_type = GemvConfig

    def configs(self, e: Emission) -> Sequence[GemvConfig]:
        p = _problem(e)
        early_epilogue_of(e, p, HookWriter(e.views, e.constant), 1, 8)  # whether the hooks can be written
        found = gemv_configs(p.n, p.k, p.b.type.dtype.itemsize)
        if not found:
            raise Unsupported(f"rows of {p.k} weights; a warp does not hold one")
        return found

    def emit(self, e: Emission, config: GemvConfig) -> None:
        p, c = _problem(e), config
        writer = HookWriter(e.views, e.constant)
        block_n, block_k = c.columns * c.num_warps, block_of(p.k, p.b.type.dtype.itemsize)
        early, epilogue = early_epilogue_of(e, p, writer, 1, block_n)
        known = p.m == 1 and all(e.constant(v) is not None for v in writer.operands)
        _, c_row, c_col = p.c_strides
        e.launch(
            gemv,
            (-(-p.n // block_n),),
            {
                **dict(a=p.a, b=p.b, c=p.output, N=p.n, a_row=p.a_rows.stride, a_col=p.a_col, b_row=p.b_strides[1]),
                **dict(c_row=c_row, c_col=c_col, M=p.m, K=p.k, EARLY=early, KNOWN=known, EPILOGUE=epilogue),
                **dict(BLOCK_N=block_n, BLOCK_K=block_k, EVEN_N=p.n % block_n == 0, PDL=True),
                **writer.arguments(),
            },
            writes=[p.output],
            num_warps=c.num_warps,
        )


def _problem(e: Emission) -> Problem:
    p = problem_of(e)
    if not isinstance(p.m, int) or p.m > MOST_ROWS or p.batch != 1:
        raise Unsupported(f"a product of {p.m} rows, {p.batch} times; up to {MOST_ROWS} are taken one after the other, once")
    if not p.constant or p.b_strides[2] != 1:
        raise Unsupported("weights that are not known, or not in rows, when an engine is built")
    if p.parts.before or p.a_rows.inner is not None:
        raise Unsupported("a first operand that is computed, or whose rows are not evenly apart")
    return p


def block_of(k: int, item_bytes: int) -> int:
    return min(LOAD_BYTES // item_bytes, up(k))


def gemv_configs(n: int, k: int, item_bytes: int) -> list[GemvConfig]:
    """The best guess first."""
    whole = -(-k // block_of(k, item_bytes)) * block_of(k, item_bytes)

    def cycles(c: GemvConfig) -> float:
        warps = -(-n // c.columns)
        each = -(-n // (c.columns * c.num_warps * PROCESSORS)) * c.num_warps  # warps of one multiprocessor
        loaded = each * c.columns * k * item_bytes / L2_BYTES_EACH
        computed = (c.columns * whole / 32 * 3 + c.columns * 20) * max(1, each / 4)
        late = max(0, each - 32) * 100  # what starts only when others are done cannot load ahead
        return loaded + computed + late + (200 if warps < 4 * PROCESSORS else 0) + 15 * each / c.num_warps

    found = [
        GemvConfig(columns, num_warps)
        for columns, num_warps in itertools.product((1, 2, 4, 8), (1, 2, 4, 8))
        if columns * whole * item_bytes <= MOST_BYTES * 32 and columns * num_warps <= max(8, up(n))
    ]
    return sorted(found, key=cycles)[:8]


TEMPLATE = GemvTemplate()
