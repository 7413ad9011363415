"""The greatest magnitude that 8 bits are spent on, chosen from a tensor's statistics.

What lies beyond it saturates; the smaller it is, the finer the steps for the rest. levels: how many steps there are from 0 to
the threshold, 128 for signed numbers and 256 for those that are never negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from torchsmith.quantize.statistics import Statistics

PERCENTILE = 0.9999  # of the numbers are within the threshold
_CANDIDATES = 512  # thresholds that are tried for the least squared error
# What saturates loses by one sign, so that errors add up in sums in which those of rounding cancel. Counted once, as the
# definition has it, the few large numbers that transformers go by are cut off.
_SATURATION = 10.0


class CalibrationAlgo(Enum):
    """How thresholds are chosen; Torch-TensorRT's names, and MSE.

    ENTROPY_CALIBRATION, ENTROPY_CALIBRATION_2: the least Kullback-Leibler divergence of the quantized distribution from the
    one seen. TensorRT's two differ in where its builder places them, not in the choice. LEGACY_CALIBRATION: the 99.99th
    percentile. MINMAX_CALIBRATION: the greatest magnitude seen. MSE: the least mean squared error, where saturation counts tenfold.
    """

    ENTROPY_CALIBRATION = "entropy"
    ENTROPY_CALIBRATION_2 = "entropy_2"
    LEGACY_CALIBRATION = "percentile"
    MINMAX_CALIBRATION = "minmax"
    MSE = "mse"


def threshold(statistics: Statistics, algo: CalibrationAlgo, dtype: torch.dtype = torch.int8) -> float:
    """The magnitude that the greatest level stands for; 0 where nothing but zeros was seen.

    Of float8_e4m3fn it is the greatest magnitude seen, or the percentile where that is asked for: a larger threshold costs a
    float no accuracy, so that there is nothing to weigh saturation against.
    """
    if statistics.magnitude == 0:
        return 0.0
    if dtype != torch.int8:
        return min(percentile(statistics, 0), statistics.magnitude) if algo is _PERCENTILE else statistics.magnitude
    levels = 128 if statistics.is_signed else 256
    return min(_CHOICES[algo](statistics, levels), statistics.magnitude)


def minmax(statistics: Statistics, levels: int) -> float:
    return statistics.magnitude


def percentile(statistics: Statistics, levels: int, share: float = PERCENTILE) -> float:
    """The upper end of the first bin up to which `share` of the numbers lie."""
    cumulated = statistics.histogram().cumsum(0)
    index = int(torch.searchsorted(cumulated, share * cumulated[-1]))
    return (index + 1) * statistics.bin_width


def entropy(statistics: Statistics, levels: int) -> float:
    counts = _used(statistics.histogram()).clone()
    # zero is always a level, and would rule the choice where most numbers are zero
    counts[0] = counts[1] if len(counts) > 1 else counts[0]
    if not counts.any():
        return statistics.magnitude
    kept = torch.arange(min(levels, len(counts)), len(counts) + 1)
    divergences = kl_divergences(counts, kept, levels)
    best = int(kept[divergences.argmin()])
    return best * statistics.bin_width


def kl_divergences(counts: Tensor, kept: Tensor, levels: int) -> Tensor:
    """For each number n of first bins kept: how far the quantized distribution is from the one seen.

    counts: (bins,), float64. kept: (candidates,), whole numbers. P is the first n bins with what lies beyond in the last of
    them. Q has the counts of the first n bins, cut in `levels` runs, each spread evenly over its bins that are not empty.
    Infinite where P has numbers in a bin that Q has none in. Gives (candidates,), float64. Source: TensorRT's entropy
    calibration (S. Migacz, "8-bit inference with TensorRT", 2017).
    """
    bins = len(counts)
    zero = counts.new_zeros(1)
    total = torch.cat((zero, counts.cumsum(0)))
    filled = torch.cat((zero, (counts > 0).double().cumsum(0)))
    self_information = torch.cat((zero, torch.xlogy(counts, counts).cumsum(0)))
    assert kept.max() <= bins, (kept.max(), bins)
    # bin j is in run floor(j * levels / n): run r begins at bin ceil(r * n / levels)
    bounds = (torch.arange(levels + 1) * kept[:, None] + levels - 1) // levels
    sums = total[bounds].diff(dim=1)
    means = sums / filled[bounds].diff(dim=1).clamp(min=1)
    last, beyond = counts[kept - 1], total[-1] - total[kept]
    last_mean = means.gather(1, ((kept - 1) * levels // kept)[:, None])[:, 0]
    p_log_p = self_information[kept] - torch.xlogy(last, last) + torch.xlogy(last + beyond, last + beyond)
    p_log_q = torch.xlogy(sums, means).sum(1) + torch.xlogy(beyond, last_mean)
    divergence = (p_log_p - p_log_q) / total[-1] + torch.log(total[kept] / total[-1])
    return torch.where((last == 0) & (beyond > 0) | (total[kept] == 0), math.inf, divergence)


def mean_squared_error(statistics: Statistics, levels: int) -> float:
    counts = _used(statistics.histogram())
    candidates = torch.linspace(len(counts) / _CANDIDATES, len(counts), _CANDIDATES, dtype=torch.float64)
    best = float(candidates[squared_errors(counts, candidates, levels).argmin()])
    return best * statistics.bin_width


def squared_errors(counts: Tensor, thresholds: Tensor, levels: int) -> Tensor:
    """The sum of squared errors that each threshold makes, with every number in the middle of its bin; saturation counts tenfold.

    counts: (bins,). thresholds: (candidates,), in bin widths. Both float64, as is the result, (candidates,) in squared widths.
    """
    middles = torch.arange(len(counts), dtype=torch.float64) + 0.5
    middles[0] = 0.0  # where the zeros are
    steps = thresholds[:, None] / (levels - 1)
    whole = (middles / steps).round_()
    weights = torch.where(whole > levels - 1, _SATURATION * counts, counts)
    return ((whole.clamp_(max=levels - 1).mul_(steps) - middles).square_() * weights).sum(1)


def _used(counts: Tensor) -> Tensor:
    """The bins up to the last one that is not empty."""
    return counts[: int(counts.nonzero().max()) + 1]


_PERCENTILE = CalibrationAlgo.LEGACY_CALIBRATION
_CHOICES: dict[CalibrationAlgo, Callable[[Statistics, int], float]] = {
    CalibrationAlgo.ENTROPY_CALIBRATION: entropy,
    CalibrationAlgo.ENTROPY_CALIBRATION_2: entropy,
    CalibrationAlgo.LEGACY_CALIBRATION: percentile,
    CalibrationAlgo.MINMAX_CALIBRATION: minmax,
    CalibrationAlgo.MSE: mean_squared_error,
}
