"""How long calls take on a device: for who waits for one, and for the device when they come one after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch

from torchsmith.bench.cores import on_the_quietest


def waits_ms(call: Callable[[], object], calls: int, device: str = "cuda") -> list[float]:
    """Milliseconds of each of `calls` calls, the device idle before and after each: what a user's latency is.

    On a GPU they come from the core that is quickest at the time.
    """
    wait, core = _on(device)
    with torch.no_grad(), core:
        call()  # not counted: brings the caches back
        found = []
        for _ in range(calls):
            wait()
            start = time.perf_counter_ns()
            call()
            wait()
            found.append((time.perf_counter_ns() - start) / 1e6)
    return found


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


def _on(device: str) -> tuple[Callable[[], None], contextlib.AbstractContextManager[int | None]]:
    if device == "cuda":
        return torch.cuda.synchronize, on_the_quietest()
    return lambda: None, contextlib.nullcontext()
