"""What a call costs around the engine: checking and flattening inputs, crossing into the engine, putting outputs together.

`python -m torchsmith.bench.overhead` prints it for a tiny model, with `--device cuda` for models on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchsmith.bench.gpu_times import per_call_ms, waits_ms
from torchsmith.bench.measure import Stats, interleave
from torchsmith.bench.models import load
from torchsmith.bench.station import moved
from torchsmith.errors import InvalidInput, TorchsmithError

if TYPE_CHECKING:
    from torchsmith.runtime.compiled import CompiledModule

ROUNDS = 10
CALLS = 50  # of a round


@dataclass(frozen=True)
class Overhead:
    """Medians in microseconds: of the whole call, of the engine alone, and their difference."""

    whole_us: float
    engine_us: float

    @property
    def call_us(self) -> float:
        return self.whole_us - self.engine_us


@dataclass(frozen=True)
class GpuOverhead:
    """Medians in microseconds, on a GPU that is idle before every call.

    wait_us: of who calls and waits for the result. graph_us: of who does so for the engine's recorded graph alone.
    gpu_us: what the GPU takes for each of many calls one after another.
    """

    wait_us: float
    graph_us: float
    gpu_us: float

    def __str__(self) -> str:
        own, driver = self.wait_us - self.graph_us, self.graph_us - self.gpu_us
        return f"{self.gpu_us:.1f} µs of the GPU, {driver:.1f} to start its graph and see it end, {own:.1f} around that"


def call_overhead(fast: CompiledModule, *tensors: Tensor, seconds: float = 2.0) -> Overhead:
    """The overhead of one call of a compiled module on a CPU; a tiny model shows it best, as an engine's own time is noisy.

    tensors: the module's inputs, in the order in which its engine takes them. Raises InvalidInput for a module that is
    not one engine and nothing else, where there is no telling the parts apart.
    """
    runner = only_runner(fast)
    alone = getattr(runner, "infer_only", None)  # OpenVINO's has it: the inference without binding tensors
    engine = alone(list(tensors)) if alone else partial(runner, list(tensors))
    return difference(partial(fast, *tensors), engine, seconds)


def gpu_call_overhead(fast: CompiledModule, *tensors: Tensor, rounds: int = ROUNDS, calls: int = CALLS) -> GpuOverhead:
    """The same of a module with a CUDA engine, by `rounds` times `calls` calls of each kind. Raises InvalidInput as above."""
    runner = only_runner(fast)
    whole, graph = partial(fast, *tensors), runner.infer_only(list(tensors))
    waits, starts, streams = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        waits += waits_ms(whole, calls)
        starts += waits_ms(graph, calls)
        streams.append(per_call_ms(whole, calls))
    return GpuOverhead(*(1e3 * statistics.median(times) for times in (waits, starts, streams)))


def only_runner(fast: CompiledModule) -> Any:
    """Raises InvalidInput for a module that is not one engine and nothing else."""
    if len(fast.engines) != 1 or fast.plan.torch_calls:
        raise InvalidInput(f"the call overhead is measured on a module of one engine and nothing else; this is {fast!r}")
    return fast.engines[0].runner


def difference(whole: Callable[[], object], engine: Callable[[], object], seconds: float) -> Overhead:
    """Time two calls in turns."""
    samples = interleave({"whole": whole, "engine": engine}, seconds)
    return Overhead(Stats.of(samples["whole"]).median_ms * 1e3, Stats.of(samples["engine"]).median_ms * 1e3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each case. Gives 2 where a name is not known, or there is no GPU."""
    given = parser().parse_args(arguments)
    try:
        if given.device == "cpu":
            tiny_model()
        else:
            models_on_gpu(given.models.split(","), [int(batch) for batch in given.batch.split(",")], given.tune == "yes")
    except TorchsmithError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m torchsmith.bench.overhead", description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu: of a tiny model, with OpenVINO")
    made.add_argument(
        "--models", default="efficientnet_b0,mobilenetv3_large_100", help="on a GPU: names, as torchsmith bench takes them"
    )
    made.add_argument("--batch", default="1,128", help="batch sizes on a GPU")
    made.add_argument("--tune", default="yes", choices=("yes", "no"), help="no: best guesses, which are built sooner")
    return made


def tiny_model() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
    for rows in (1, 1000):  # an output that is copied, and one that is bound
        x = torch.randn(rows, 64)
        found = call_overhead(compiled(model, [x], min_block_size=1), x)
        print(f"({rows}, 64): {found.call_us:.1f} µs around an engine of {found.engine_us:.1f} µs")


def models_on_gpu(models: Sequence[str], batches: Sequence[int], tune: bool) -> None:
    """In float16."""
    if not torch.cuda.is_available():
        raise InvalidInput("PyTorch finds no GPU here")
    for name, batch in itertools.product(models, batches):
        model = load(name)
        inputs = moved(model.inputs(batch, 0), "cuda")
        fast = compiled(
            model.module(batch).cuda(), inputs.args, kwarg_inputs=inputs.kwargs or None, enabled_precisions={torch.half}, tune=tune
        )
        print(f"{name}, batch {batch}: {gpu_call_overhead(fast, *inputs.tensors())}", flush=True)


def compiled(model: torch.nn.Module, inputs: Sequence[Any], **options: Any) -> CompiledModule:
    import torchsmith
    from torchsmith.runtime.compiled import CompiledModule

    fast = torchsmith.compile(model, inputs=list(inputs), **options)
    assert isinstance(fast, CompiledModule), fast
    return fast


if __name__ == "__main__":
    sys.exit(main())
