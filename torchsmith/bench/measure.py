"""Timing that survives a noisy machine: sides take turns in short bursts, and medians are compared."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

BURST_SECONDS = 0.05
MOST_CALLS_PER_BURST = 100
FEWEST_ROUNDS = 5
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Stats:
    """Wall times of single calls, in milliseconds. p10 to p90 is the spread; calls: how many were timed."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    calls: int

    @staticmethod
    def of(samples_ms: Sequence[float]) -> Stats:
        ordered = sorted(samples_ms)
        return Stats(quantile(ordered, 0.5), quantile(ordered, 0.1), quantile(ordered, 0.9), len(ordered))


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1) of values in ascending order, linear between neighbours. Raises ValueError for none."""
    if not ordered:
        raise ValueError("there is no quantile of no samples")
    place = q * (len(ordered) - 1)
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interleave(
    sides: Mapping[str, Call],
    seconds: float,
    seed: int = 0,
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> dict[str, list[float]]:
    """Time every side in turns: each round runs a burst of each, in an order of its own. Milliseconds per call, by side.

    seconds: what all rounds together may take; there are never fewer than FEWEST_ROUNDS.
    on_round(done, rounds) is called after each.
    """
    if not sides:
        return {}
    once = {name: _warm_up(call) for name, call in sides.items()}
    bursts = {name: burst_calls(seconds_per_call) for name, seconds_per_call in once.items()}
    one_round = sum(once[name] * (calls + (calls > 1)) for name, calls in bursts.items())
    rounds = max(FEWEST_ROUNDS, round(seconds / max(one_round, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    order, rng = list(sides), random.Random(seed)
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(1, rounds + 1):
            rng.shuffle(order)
            for name in order:
                samples[name] += _burst(sides[name], bursts[name])
            on_round(done, rounds)
    finally:
        if was_collecting:
            gc.enable()
    return samples


def burst_calls(seconds_per_call: float) -> int:
    """How many calls fill one burst."""
    return max(1, min(MOST_CALLS_PER_BURST, int(BURST_SECONDS / max(seconds_per_call, 1e-9))))


def _warm_up(call: Call) -> float:
    """Run `call` until it is warm; seconds of its quickest run."""
    quickest = math.inf
    for _ in range(WARM_UP_CALLS):
        start = time.perf_counter_ns()
        call()
        quickest = min(quickest, (time.perf_counter_ns() - start) / 1e9)
    return quickest


def _burst(call: Call, calls: int) -> list[float]:
    """Milliseconds of each of `calls` calls in a row; before several short ones, one that is not counted brings the caches back."""
    if calls > 1:
        call()
    found = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found
