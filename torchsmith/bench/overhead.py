"""What a call costs around the engine: checking and flattening inputs, crossing into the engine, putting outputs together.

`python -m torchsmith.bench.overhead` prints it for a tiny model.
"""

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
    runner = fast.engines[0].runner
    alone = getattr(runner, "infer_only", None)  # OpenVINO's has it: the inference without binding tensors
    engine = alone(list(tensors)) if alone else partial(runner, list(tensors))
    return difference(partial(fast, *tensors), engine, seconds)


def difference(whole: Callable[[], object], engine: Callable[[], object], seconds: float) -> Overhead:
    """Time two calls in turns."""
    samples = interleave({"whole": whole, "engine": engine}, seconds)
    return Overhead(Stats.of(samples["whole"]).median_ms * 1e3, Stats.of(samples["engine"]).median_ms * 1e3)


def main() -> None:
    import torch

    import torchsmith
    from torchsmith.runtime.compiled import CompiledModule

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
    for rows in (1, 1000):  # an output that is copied, and one that is bound
        x = torch.randn(rows, 64)
        fast = torchsmith.compile(model, inputs=[x], min_block_size=1)
        assert isinstance(fast, CompiledModule), fast
        found = call_overhead(fast, x)
        print(f"({rows}, 64): {found.call_us:.1f} µs around an engine of {found.engine_us:.1f} µs")


if __name__ == "__main__":
    main()
