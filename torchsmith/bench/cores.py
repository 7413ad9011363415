"""The core that calls are timed from: on a shared machine some cores run at half the speed of others."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator

TRIES = 100  # of a few microseconds each


@contextlib.contextmanager
def on_the_quietest(probe: Callable[[], float] | None = None) -> Iterator[int | None]:
    """Keep this thread on the one of its cores that does a piece of Python quickest now, and let it go again.

    Gives the core, None where a thread cannot be kept on one. probe: seconds of that piece on the core that it is called on.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    allowed = os.sched_getaffinity(0)
    probe = probe or piece_of_python
    try:
        taken = dict[int, float]()
        for core in sorted(allowed):
            os.sched_setaffinity(0, {core})
            taken[core] = probe()
        quietest = min(taken, key=lambda core: taken[core])
        os.sched_setaffinity(0, {quietest})
        yield quietest
    finally:
        os.sched_setaffinity(0, allowed)


def piece_of_python() -> float:
    """Seconds of a hundred additions, the median of many tries: all of it is in the core's first cache."""
    times = []
    for _ in range(TRIES):
        start, total = time.perf_counter(), 0
        for number in range(100):
            total += number
        times.append(time.perf_counter() - start)
    return statistics.median(times)
