"""Which core calls are timed from."""

from __future__ import annotations

import os

import pytest

from torchsmith.bench.cores import on_the_quietest, piece_of_python

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
