"""What a call costs around the engine: checking and flattening inputs, crossing into the engine, putting outputs together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from torchsmith.bench.measure import Stats, interleave
from torchsmith.errors import InvalidInput

if TYPE_CHECKING:
    from torchsmith.runtime.compiled import CompiledModule


@dataclass(frozen=True)
class Overhead:
    """Medians in microseconds: of the whole call, of the engine alone, and their difference."""

    whole_us: float
    engine_us: float

    @property
    def call_us(self) -> float:
        return self.whole_us - self.engine_us


def call_overhead(fast: CompiledModule, *tensors: Tensor, seconds: float = 2.0) -> Overhead:
    """The overhead of one call of a compiled module; a tiny model shows it best, as an engine's own time is noisy.

    tensors: the module's inputs, in the order in which its engine takes them. Raises InvalidInput for a module that is
    not one engine and nothing else, where there is no telling the parts apart.
    """
    if len(fast.engines) != 1 or fast.plan.torch_calls:
        raise InvalidInput(f"the call overhead is measured on a module of one engine and nothing else; this is {fast!r}")
    return difference(partial(fast, *tensors), partial(fast.engines[0].runner, list(tensors)), seconds)


def difference(whole: Callable[[], object], engine: Callable[[], object], seconds: float) -> Overhead:
    """Time two calls in turns."""
    samples = interleave({"whole": whole, "engine": engine}, seconds)
    return Overhead(Stats.of(samples["whole"]).median_ms * 1e3, Stats.of(samples["engine"]).median_ms * 1e3)
