"""What a layer costs in each precision, by a model: the slower of its arithmetic and its memory traffic.

Only ratios matter: times are in the time that a byte takes to move. A layer counts alone: that int8 need not be converted
between two int8 layers, and that one kernel may do the work of several nodes, is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.ops.quantize import FP8
from torchsmith.target import Target

BYTES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.int8: 1, FP8: 1}

# Operations (two to a multiply-add) in the time that a byte takes, by dtype. GPUs: dense tensor-core rates by memory bandwidth,
# from NVIDIA's data sheets (A100 SXM: 156, 312, 312, 624 TFLOP/s at 2.0 TB/s; H100 SXM: 495, 989, 989, 1979 at 3.35).
# CPUs: operations a cycle and core, from Intel's optimization manual, by 8 bytes a cycle from the second-level cache.
_GPUS = {"sm_80": (76, 153, 153, 306), "sm_90": (148, 295, 295, 591)}
_CPUS = {
    "amx_int8": (8, 8, 256, 512),
    "avx512_bf16": (8, 8, 16, 32),
    "avx512_vnni": (8, 8, 8, 32),
    "avx512f": (8, 8, 8, 16),
    "": (4, 4, 4, 8),
}


@dataclass(frozen=True)
class Work:
    """Of one node in one call. operations: two to a multiply-add. numbers: that go in and out."""

    operations: float
    numbers: float

    @staticmethod
    def of(values: Sequence[Tensor], given: Tensor, axis: int | None = None) -> Work:
        """values: a matrix node's floating inputs. given: its output. axis: where the second input is a weight, its dimension of
        output channels; for products of activations None. Three activations are attention's, which multiplies twice.
        """
        numbers = float(sum(v.numel() for v in values) + given.numel())
        x, other = values[0], values[min(1, len(values) - 1)]
        if axis is not None:
            depth = other.numel() / max(1, other.shape[axis])
        elif len(values) > 2:
            depth = other.shape[-2] * (1 + x.shape[-1] / max(1, given.shape[-1]))
        else:
            depth = x.shape[-1]
        return Work(2.0 * given.numel() * depth, numbers)


def rates(target: Target) -> Mapping[torch.dtype, float]:
    """Operations of each dtype in the time that a byte takes."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
    if target.device == "cuda":
        number = int(target.arch.removeprefix("sm_"))
        found = _GPUS["sm_90" if number >= 90 else "sm_80"]
    else:
        found = _CPUS[next((feature for feature in _CPUS if feature in target.features), "")]
    known = dict(zip(dtypes, found, strict=True))
    return {**known, FP8: known[torch.int8]}  # tensor cores that have it multiply as fast in both


def time_of(work: Work, dtype: torch.dtype, target: Target) -> float:
    """In the time that a byte takes to move."""
    return max(work.operations / rates(target)[dtype], work.numbers * BYTES[dtype], math.ulp(0.0))
