"""Linear layers of float8, through `kernels/gemm.py`: sums in float32, then scales and all that follows."""

from __future__ import annotations

from torchsmith.backends.cuda.tactics.gemm_int8 import GemmInt8Template


class GemmFloat8Template(GemmInt8Template):
    """As int8 has it: as many bytes, and tensor cores that are as fast."""

    name = "gemm_float8"
    kinds = frozenset({"gemm_float8", "Float8Linear"})


TEMPLATE = GemmFloat8Template()
