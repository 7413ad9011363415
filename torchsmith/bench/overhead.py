"""What a call costs around the engine: checking and flattening inputs, crossing into the engine, putting outputs together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchsmith.bench.measure import Stats, interleave


@dataclass(frozen=True)
class Overhead:
    """Medians in microseconds: of the whole call, of the engine alone, and their difference."""

    whole_us: float
    engine_us: float

    @property
    def call_us(self) -> float:
        return self.whole_us - self.engine_us


def call_overhead(whole: Callable[[], object], engine: Callable[[], object], seconds: float = 2.0) -> Overhead:
    """Time a call of a compiled module and one of its engine's runner, in turns. A tiny model shows the difference best."""
    samples = interleave({"whole": whole, "engine": engine}, seconds)
    return Overhead(Stats.of(samples["whole"]).median_ms * 1e3, Stats.of(samples["engine"]).median_ms * 1e3)
