"""Statistics of a tensor over batches: the least and the greatest number, and a histogram of magnitudes.

The histogram's range is a power of two and grows by doubling, where neighbouring bins become one. So counts are exact, do not
depend on the order of the batches, and histograms of several tensors add up to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 4096  # at least half of them below the greatest magnitude
_LEAST_EXPONENT = -100  # magnitudes below 2**-100 are counted in the first bin


@dataclass(frozen=True)
class Statistics:
    """What was seen of a tensor.

    least, greatest: of its numbers. exponent: the histogram covers magnitudes below 2**exponent. counts: (BINS,), float64 on
    the CPU, whole numbers; bin i counts magnitudes from i to below i + 1 bin widths.
    """

    least: float = math.inf
    greatest: float = -math.inf
    exponent: int = _LEAST_EXPONENT
    counts: Tensor | None = None

    @property
    def magnitude(self) -> float:
        """The greatest magnitude seen; 0 where nothing was."""
        return max(abs(self.least), abs(self.greatest)) if self.greatest >= self.least else 0.0

    @property
    def is_signed(self) -> bool:
        """Whether any number was negative."""
        return self.least < 0

    @property
    def bin_width(self) -> float:
        return math.ldexp(1.0, self.exponent) / BINS

    def histogram(self) -> Tensor:
        return torch.zeros(BINS, dtype=torch.float64) if self.counts is None else self.counts

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.magnitude)

    @staticmethod
    def of(tensor: Tensor) -> Statistics:
        """One tensor's: any shape, any floating dtype. Where some number is not finite, nothing is counted."""
        if not tensor.numel():
            return Statistics()
        flat = tensor.detach().flatten().float()
        least, greatest = (float(v) for v in torch.aminmax(flat))
        if not (math.isfinite(least) and math.isfinite(greatest)):
            return Statistics(-math.inf, math.inf)
        exponent = _exponent(max(abs(least), abs(greatest)))
        indices = flat.abs().mul_(BINS * math.ldexp(1.0, -exponent)).to(torch.int64)  # exact: the factor is a power of two
        return Statistics(least, greatest, exponent, torch.bincount(indices, minlength=BINS).cpu().double())

    def merged(self, other: Statistics) -> Statistics:
        """What was seen of both tensors."""
        exponent = max(self.exponent, other.exponent)
        counts = self._counts_up_to(exponent) + other._counts_up_to(exponent)
        return Statistics(min(self.least, other.least), max(self.greatest, other.greatest), exponent, counts)

    def _counts_up_to(self, exponent: int) -> Tensor:
        counts = self.histogram()
        if exponent - self.exponent >= BINS.bit_length():
            return torch.cat((counts.sum().reshape(1), counts.new_zeros(BINS - 1)))
        for _ in range(exponent - self.exponent):
            counts = torch.cat((counts.reshape(-1, 2).sum(1), counts.new_zeros(BINS // 2)))
        return counts


def _exponent(magnitude: float) -> int:
    """The least n with magnitude < 2**n."""
    return max(math.frexp(magnitude)[1], _LEAST_EXPONENT) if magnitude else _LEAST_EXPONENT
