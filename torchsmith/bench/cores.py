"""The core that calls are timed from: on a shared machine some cores run at half the speed of others, and others in a moment."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator

TRIES = 100  # of a few microseconds each
FEW = 10  # measurements on one core; it may be slow in a moment, or in ways that the piece of Python does not see
QUIET = 1.15  # a core that takes so many times as long as at its best is shared
PATIENCE = 3.0  # measurements that are taken for one that is asked for, before a machine is held to be never quiet


class QuietCores:
    """Measures on the core that is quickest at the time, and again what was measured while someone else shared it.

    probe: seconds of a piece of work on the core that it is called on; the best of all is how long it takes undisturbed.
    """

    def __init__(self, probe: Callable[[], float] | None = None) -> None:
        self._probe = probe or piece_of_python
        self._best = math.inf

    def gather(self, count: int, some: Callable[[int], list[float]]) -> list[float]:
        """`count` measurements, of which some(number) takes a few. On a machine that is never quiet the last are as they come."""
        kept = list[float]()
        left = math.ceil(count * PATIENCE)
        while len(kept) < count:
            few = min(FEW, count - len(kept))
            with on_the_quietest(self._probe):
                before, taken, after = self._probe(), some(few), self._probe()
            self._best = min(self._best, before, after)
            left -= few
            if max(before, after) <= QUIET * self._best or left <= 0:
                kept += taken
        return kept


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
