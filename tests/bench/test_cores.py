"""Which core calls are timed from."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest

from torchsmith.bench.cores import FEW, PATIENCE, QuietCores, on_the_quietest, piece_of_python

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot keep a thread on a core")


@needs_affinity
def test_the_quickest_core_is_kept_to_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    slow = max(before)

    def probe() -> float:
        (core,) = os.sched_getaffinity(0)
        return 2.0 if core == slow and len(before) > 1 else 1.0

    with on_the_quietest(probe) as core:
        assert core == min(before) and os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_a_failure_lets_the_thread_go() -> None:
    before = os.sched_getaffinity(0)

    def probe() -> float:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), on_the_quietest(probe):
        pass
    assert os.sched_getaffinity(0) == before


def test_the_real_probe_takes_time() -> None:
    assert 0 < piece_of_python() < 1


def test_where_threads_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with on_the_quietest() as core:
        assert core is None


class Shared:
    """Cores that someone shares for some of the probes."""

    def __init__(self, seconds: Iterable[float]) -> None:
        self.seconds = iter(seconds)
        self.taken = 0

    def probe(self) -> float:
        return next(self.seconds, 1.0)

    def some(self, number: int) -> list[float]:
        self.taken += number
        return [float(self.taken)] * number


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)  # no probes but those before and behind


def test_what_was_measured_while_others_shared_the_core_is_measured_again(one_core: None) -> None:
    shared = Shared([1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.1, 1.1])  # the second few are disturbed behind, the third before
    assert QuietCores(shared.probe).gather(FEW + 1, shared.some) == [float(FEW)] * FEW + [float(FEW + 3)]


def test_a_machine_that_is_never_quiet_gives_what_it_can(one_core: None) -> None:
    shared = Shared([1.0, *[2.0] * 1000])
    count = 2 * FEW
    assert len(QuietCores(shared.probe).gather(count, shared.some)) == count
    assert shared.taken <= count * (PATIENCE + 1)


def test_all_that_is_asked_for_is_measured_on_real_cores() -> None:
    asked = list[int]()
    assert len(QuietCores().gather(12, lambda number: asked.append(number) or [0.5] * number)) == 12
    assert max(asked) <= FEW
