"""How long calls take on a device: for who waits for one, and for the device when they come one after another."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from torchsmith.bench.cores import QuietCores

WARM = 3  # calls that are not counted, after those of another side, and on a core that has nothing of them in its caches yet
_cores = QuietCores()


def waits_ms(call: Callable[[], object], calls: int, device: str = "cuda") -> list[float]:
    """Milliseconds of each of `calls` calls, the device idle before and after each: what a user's latency is.

    On a GPU, until the current stream is done, and from cores that nobody else slows at the time.
    """
    wait: Callable[[], object] = torch.cuda.current_stream().synchronize if device == "cuda" else lambda: None

    def some(number: int) -> list[float]:
        for _ in range(WARM):
            call()
            wait()
        found = []
        for _ in range(number):
            start = time.perf_counter_ns()
            call()
            wait()
            found.append((time.perf_counter_ns() - start) / 1e6)
        return found

    with torch.no_grad():
        return _cores.gather(calls, some) if device == "cuda" else some(calls)


def per_call_ms(call: Callable[[], object], calls: int, device: str = "cuda") -> float:
    """Milliseconds per call of `calls` calls one after another, as the device's own events tell."""
    with torch.no_grad():
        call()
        if device != "cuda":
            start = time.perf_counter_ns()
            for _ in range(calls):
                call()
            return (time.perf_counter_ns() - start) / 1e6 / calls
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        first.record()
        for _ in range(calls):
            call()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last)) / calls
