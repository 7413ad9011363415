"""How an SM's memory is split between shared memory and cache, for all kernels of a variant alike.

Left to itself the driver splits it anew for every kernel. A kernel that starts while the one before still runs, as ours do,
waits where the two want it differently: at batch 1 that is a good part of the time. Kernels that run for long rather have the
cache. So variants are timed both ways where there is a GPU, and judged by their bytes where there is none.
Source: CUDA driver API, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from torchsmith.backends.cuda.inspect import tried
from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.plan import Emitted, read
from torchsmith.backends.cuda.run import CudaRunner, functions_of
from torchsmith.errors import OutOfDeviceMemory
from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Value
from torchsmith.target import Target

SHARED = 100  # percent: what all kernels ask for where they are to want the same
SHORT_BYTES = 4 << 20  # a step, on average, of a variant whose kernels are short: about a microsecond's worth
GAIN = 0.995  # of the time, at most, for asking to be worth it
ROUNDS = 9
ROUND_SECONDS = 0.001


def settled(
    variants: Sequence[Emitted],
    views: Mapping[Value, View],
    usual: Mapping[str, int],
    target: Target,
    engine: Callable[[Sequence[Emitted]], bytes] | None,
) -> list[Emitted]:
    """The variants with their carve-outs. usual: sizes of a variant that is for all sizes.

    engine: makes the bytes of an engine, where it can be timed on this machine's GPU. None: by bytes.
    """
    guesses = [replace(v, carveout=guessed(v, views, v.at or usual)) for v in variants]
    if engine is None:
        return guesses
    data = engine(variants)
    found = []
    for number, guess in enumerate(guesses):
        try:
            times = measured(data, number, guess.at or usual, target)
        except OutOfDeviceMemory:  # the build needs none; a call will say so
            found.append(guess)
        else:
            found.append(replace(guess, carveout=SHARED if times[SHARED] < GAIN * times[None] else None))
    return found


def guessed(variant: Emitted, views: Mapping[Value, View], at: Mapping[str, int]) -> int | None:
    """By the bytes that a step touches on average."""
    touched = [sum(_bytes(v, at) for v in dict.fromkeys(step.touched)) for step in variant.steps]
    return SHARED if touched and sum(touched) / len(touched) < SHORT_BYTES else None


def _bytes(value: Value, at: Mapping[str, int]) -> int:
    return int(bind(value.type.numel, at)) * value.type.dtype.itemsize


def measured(engine: bytes, variant: int, at: Mapping[str, int], target: Target) -> dict[int | None, float]:
    """Seconds of one run with every carve-out: medians, taken in turns. Raises OutOfDeviceMemory."""
    plan, tensors = read(engine)
    instance = tried(CudaRunner(engine, target), at, plan.variants[variant])
    functions = {carveout: functions_of(plan, tensors, carveout) for carveout in (None, SHARED)}  # for as long as the graphs
    graphs: dict[int | None, torch.cuda.CUDAGraph] = {}
    for carveout in functions:
        instance.functions = functions[carveout]
        graphs[carveout] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[carveout]):
            instance.enqueue(torch.cuda.current_stream())
    once = min(_replayed(graph, 1) for _, graph in itertools.product(range(2), graphs.values()))
    runs = max(1, round(ROUND_SECONDS / max(once, 1e-6)))
    times: dict[int | None, list[float]] = {carveout: [] for carveout in graphs}
    for _ in range(ROUNDS):
        for carveout, graph in graphs.items():
            times[carveout].append(_replayed(graph, runs))
    return {carveout: statistics.median(found) for carveout, found in times.items()}


def _replayed(graph: torch.cuda.CUDAGraph, runs: int) -> float:
    """Seconds of a run, after one that is not counted."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()
    first.record()
    for _ in range(runs):
        graph.replay()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000 / runs
