"""Linear layers and 1×1 convolutions of int8, through `kernels/gemm.py`: sums in int32, then scales and all that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.program import HookWriter
from torchsmith.backends.cuda.tactics.gemm import USUAL_BATCH, USUAL_ROWS, emit_split, emit_whole, parts_fit
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig, gemm_configs
from torchsmith.backends.cuda.tactics.gemm_problem import epilogue_of, problem_of
from torchsmith.errors import Unsupported


class GemmInt8Template:
    name = "gemm_int8"
    kinds = frozenset({"gemm_int8", "IntegerLinear", "IntegerConvolution"})
    config_type = GemmConfig

    def configs(self, e: Emission) -> Sequence[GemmConfig]:
        p = problem_of(e)
        if p.parts.before:
            raise Unsupported("the operand of eight bits is computed as it loads; it has to be in memory")
        epilogue_of(e, p, HookWriter(e.views, e.constant), 16, 16)  # whether it can be written
        m, batch = e.likely(p.m, USUAL_ROWS), e.likely(p.batch, USUAL_BATCH)
        found = eight_bit_configs(m, p.n, p.k, batch, p.constant and isinstance(p.m, int))
        return [c for c in found if c.split_k == 1 or parts_fit(e, p, c.split_k)]

    def emit(self, e: Emission, config: GemmConfig) -> None:
        p = problem_of(e)
        if config.split_k > 1:
            emit_split(e, p, config)
        else:
            emit_whole(e, p, config)


def eight_bit_configs(m: int, n: int, k: int, batch: int, constant: bool) -> list[GemmConfig]:
    """Those of a product of as many bytes of half precision: tensor cores multiply twice as many numbers of eight bits at once."""
    return [replace(c, block_k=2 * c.block_k) for c in gemm_configs(m, n, -(-k // 2), batch, 2, constant, False)]


TEMPLATE = GemmInt8Template()
