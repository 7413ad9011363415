"""Statistics over batches, and thresholds against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchsmith.quantize.statistics import BINS, Statistics
from torchsmith.quantize.thresholds import CalibrationAlgo, entropy, kl_divergences, percentile, squared_errors, threshold


def statistics_of(*tensors: Tensor) -> Statistics:
    found = Statistics()
    for tensor in tensors:
        found = found.merged(Statistics.of(tensor))
    return found


def test_statistics_count_every_number_once_in_its_bin() -> None:
    x = torch.tensor([-3.0, 0.0, 0.5, 1.0, 3.999])
    found = Statistics.of(x)
    assert (found.least, found.exponent, found.is_signed) == (-3.0, 2, True) and found.greatest == pytest.approx(3.999)
    wanted = torch.zeros(BINS, dtype=torch.float64)
    for value in x.tolist():
        wanted[int(abs(value) / found.bin_width)] += 1
    torch.testing.assert_close(found.histogram(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("scales", [(1.0, 4.0, 0.01), (1e-6, 1e6, 1.0), (2.0, 1.0, 0.5), (1e-35, 1.0, 0.0)])
def test_the_range_grows_and_the_order_of_batches_does_not_matter(scales: tuple[float, ...]) -> None:
    batches = [torch.randn(500) * scale for scale in scales]
    batches[0][:2] = torch.tensor([1.0, 2.0])  # powers of two lie on the edges of bins
    there, back, at_once = statistics_of(*batches), statistics_of(*reversed(batches)), statistics_of(torch.cat(batches))
    for other in (back, at_once):
        assert (there.least, there.greatest, there.exponent) == (other.least, other.greatest, other.exponent)
        torch.testing.assert_close(there.histogram(), other.histogram(), rtol=0, atol=0)
    assert int(there.histogram().sum()) == 1500


def test_nothing_seen_and_numbers_that_are_not_finite() -> None:
    assert Statistics.of(torch.empty(0, 3)).magnitude == 0 and Statistics().is_finite
    assert not Statistics.of(torch.tensor([1.0, math.nan])).is_finite
    assert not Statistics.of(torch.tensor([1.0, -math.inf])).is_finite


@pytest.mark.parametrize("algo", CalibrationAlgo)
def test_thresholds_are_within_what_was_seen(algo: CalibrationAlgo) -> None:
    for x in (torch.randn(5000), torch.randn(5000).relu(), torch.tensor([2.0]), torch.full((7,), -1.5), torch.randn(100) * 1e-20):
        found = Statistics.of(x)
        assert 0 < threshold(found, algo) <= found.magnitude
    assert threshold(Statistics.of(torch.zeros(5)), algo) == 0


def test_the_percentile_is_the_upper_end_of_the_bin_with_that_share_below() -> None:
    x = torch.rand(10000)
    found = Statistics.of(x)
    for share in (0.5, 0.99, 0.9999):
        exact = float(x.double().sort().values[math.ceil(share * len(x)) - 1])
        assert 0 <= percentile(found, 256, share) - exact <= found.bin_width


def divergence(counts: list[float], kept: int, levels: int) -> float:
    """Kullback-Leibler by the definition, bin by bin."""
    p = counts[:kept]
    p[-1] += sum(counts[kept:])
    runs = [j * levels // kept for j in range(kept)]
    q = []
    for j, count in enumerate(counts[:kept]):
        members = [k for k in range(kept) if runs[k] == runs[j] and counts[k] > 0]
        q.append(sum(counts[k] for k in members) / len(members) if count > 0 else 0.0)
    if any(a > 0 and b == 0 for a, b in zip(p, q)) or sum(q) == 0:
        return math.inf
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q) if a > 0)


@pytest.mark.parametrize("levels", [4, 7])
@pytest.mark.parametrize("empty", [0.0, 0.4])
def test_divergences_are_those_of_the_definition(levels: int, empty: float) -> None:
    counts = (torch.rand(60, dtype=torch.float64).mul(50).pow(torch.linspace(1.5, 0, 60, dtype=torch.float64))).round()
    counts[torch.rand(60) < empty] = 0
    kept = torch.arange(levels, 61)
    wanted = torch.tensor([divergence(counts.tolist(), int(n), levels) for n in kept], dtype=torch.float64)
    torch.testing.assert_close(kl_divergences(counts, kept, levels), wanted, rtol=1e-9, atol=1e-9)
    assert math.isfinite(wanted.min())


@pytest.mark.parametrize("levels", [4, 7])
def test_squared_errors_are_those_of_the_definition(levels: int) -> None:
    counts, thresholds = torch.rand(50, dtype=torch.float64), torch.linspace(3.1, 50, 11, dtype=torch.float64)
    wanted = []
    for edge in thresholds.tolist():
        grid = [edge * level / (levels - 1) for level in range(levels)]
        middles = [0.0, *(j + 0.5 for j in range(1, 50))]
        beyond = edge * (levels - 0.5) / (levels - 1)
        weights = [(10 if m > beyond else 1) * float(n) for n, m in zip(counts, middles)]
        wanted.append(sum(w * min((m - g) ** 2 for g in grid) for w, m in zip(weights, middles)))
    given = squared_errors(counts, thresholds, levels)
    torch.testing.assert_close(given, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_lone_outlier_is_cut_off_by_all_but_minmax() -> None:
    found = Statistics.of(torch.cat((torch.randn(100_000), torch.tensor([100.0]))))
    chosen = {algo: threshold(found, algo) for algo in CalibrationAlgo}
    assert chosen[CalibrationAlgo.MINMAX_CALIBRATION] == 100.0
    assert 20 < chosen[CalibrationAlgo.MSE] < 100  # one number 100 is worth some error of the others
    for algo in (CalibrationAlgo.ENTROPY_CALIBRATION_2, CalibrationAlgo.LEGACY_CALIBRATION):
        assert 3 < chosen[algo] < 6, (algo, chosen[algo])


def test_a_uniform_distribution_keeps_its_range() -> None:
    found = Statistics.of(torch.rand(200_000) * 3)
    assert entropy(found, 256) > 2.9
    assert threshold(found, CalibrationAlgo.MSE) > 2.9
