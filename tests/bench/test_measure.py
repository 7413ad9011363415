"""Statistics and turns."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsmith.bench.measure import FEWEST_ROUNDS, MOST_CALLS_PER_BURST, Stats, burst_calls, interleave, quantile
from torchsmith.bench.overhead import difference

samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


@given(samples, st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], q: float) -> None:
    assert quantile(sorted(values), q) == pytest.approx(np.quantile(values, q), rel=1e-9, abs=1e-9)


@given(samples)
def test_the_spread_holds_the_median(values: list[float]) -> None:
    stats = Stats.of(values)
    assert stats.p10_ms <= stats.median_ms <= stats.p90_ms and stats.calls == len(values)


def test_no_samples_have_no_median() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Stats.of([])


def test_a_burst_is_short_and_never_empty() -> None:
    assert burst_calls(0.0) == MOST_CALLS_PER_BURST
    assert burst_calls(0.01) == 5
    assert burst_calls(30.0) == 1


def test_every_side_has_its_turn_in_every_round() -> None:
    log: list[str] = []
    rounds: list[tuple[int, int]] = []
    sides = {name: lambda name=name: (log.append(name), time.sleep(0.06)) for name in "abc"}
    found = interleave(sides, seconds=0.01, seed=3, on_round=lambda done, of: rounds.append((done, of)))
    turns = log[-3 * FEWEST_ROUNDS :]  # what comes before is warming up
    orders = [tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len(set(orders)) > 1, "the order should change from round to round"
    assert {name: len(times) for name, times in found.items()} == dict.fromkeys("abc", FEWEST_ROUNDS)
    assert all(60 <= ms < 6000 for times in found.values() for ms in times)
    assert rounds == [(done, FEWEST_ROUNDS) for done in range(1, FEWEST_ROUNDS + 1)]


def test_the_time_budget_sets_the_number_of_rounds() -> None:
    start = time.perf_counter()
    found = interleave({"a": lambda: time.sleep(0.01)}, seconds=0.6)
    assert len(found["a"]) >= 10
    assert time.perf_counter() - start < 10


def test_the_garbage_collector_comes_back_after_an_error() -> None:
    calls = iter(range(5))
    with pytest.raises(StopIteration):
        interleave({"a": lambda: next(calls)}, seconds=0.1)
    assert gc.isenabled()


def test_no_sides_take_no_time() -> None:
    assert interleave({}, seconds=60) == {}


def test_the_overhead_is_the_difference() -> None:
    found = difference(lambda: time.sleep(0.004), lambda: time.sleep(0.001), seconds=0.3)
    assert 2000 < found.call_us < 30_000
    assert found.whole_us == pytest.approx(found.engine_us + found.call_us)
