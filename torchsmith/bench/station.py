"""One side of a comparison on a GPU: builds it, checks it against float64, times bursts of calls when it is told to.

`Station` does so in this process, `Remote` in a process of its own, which a side that never ends building, or that breaks the
device for its process, cannot take others down with.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchsmith.bench.check import outputs_of, reference, worst_error
from torchsmith.bench.gpu_sides import BESIDE_EIGHT_BITS, GPU_BUILDERS, eager
from torchsmith.bench.gpu_times import per_call_ms, waits_ms
from torchsmith.bench.models import Inputs, Model, load
from torchsmith.bench.sides import EIGHT_BITS, SUBJECT, Builder, Built, first_line, forget_compiled

CHECK_SEEDS = (0, 1)
CALIBRATION_SEED = 1000  # the first of those; far from the ones above
OURS = (SUBJECT, *EIGHT_BITS.values())


@dataclass(frozen=True)
class Task:
    """A side on a case. options: what `torchsmith.compile` gets besides, of our own side."""

    model: str
    batch: int
    side: str
    precision: str
    device: str = "cuda"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of building a side. why: the reason where it cannot be timed, else empty.

    error: relative, against float64. eager_error: of PyTorch's own in the same precision. peak_mb: MiB on the device in a call.
    """

    why: str = ""
    error: float | None = None
    eager_error: float | None = None
    build_s: float | None = None
    peak_mb: float | None = None
    note: str = ""
    items: int = 1


class Station:
    """Runs one side at a time in this process."""

    def __init__(self, builders: Mapping[str, Builder] = GPU_BUILDERS) -> None:
        self._builders = builders
        self._call: Callable[[], object] = lambda: None
        self._device = "cuda"

    def build(self, task: Task, limit_s: float = 0.0) -> Outcome:
        """Build and check. Failures of the side are outcomes; limit_s does not count in this process."""
        self.forget()
        self._device = task.device
        # a library that times its algorithms first is what its users would have; ours chooses by itself
        torch.backends.cudnn.benchmark = task.side not in OURS
        try:
            with torch.no_grad():
                return self._build(task)
        except Exception as error:  # a failure is this side's result; the others go on
            traceback.print_exc()
            return Outcome(why=f"{type(error).__name__}: {first_line(error)}")

    def _build(self, task: Task) -> Outcome:
        model = load(task.model)
        module = model.module(task.batch).to(task.device)
        checks = [
            (given, expect(module, given)) for given in (moved(model.inputs(task.batch, s), task.device) for s in CHECK_SEEDS)
        ]
        inputs = checks[0][0]
        builder = self._builders[task.side]
        if task.side in OURS and task.options:
            builder = partial(builder, options=task.options)  # type: ignore[call-arg]  # only our own side has options
        if task.side in EIGHT_BITS.values():
            builder = partial(builder, data=calibration_data(model, task))  # type: ignore[call-arg]
        beside = BESIDE_EIGHT_BITS if task.side in EIGHT_BITS.values() else task.precision
        own = errors(eager(copy.deepcopy(module), inputs, beside), checks)
        start = time.perf_counter()
        built = builder(copy.deepcopy(module), inputs, task.precision)
        build_s = time.perf_counter() - start
        error = errors(built, checks)
        del checks, module
        self._call = built.bind(inputs)
        return Outcome("", error, own, round(build_s, 2), self._peak_mb(), built.note, inputs.items)

    def _peak_mb(self) -> float | None:
        if self._device != "cuda":
            return None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._call()
        torch.cuda.synchronize()
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)

    def wall(self, calls: int) -> list[float]:
        return waits_ms(self._call, calls, self._device)

    def stream(self, calls: int) -> float:
        return per_call_ms(self._call, calls, self._device)

    def forget(self) -> None:
        """Let go of what was built."""
        self._call = lambda: None
        forget_compiled()
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def close(self) -> None:
        self.forget()


def expect(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs in float64, on the CPU, with no algorithm search for what runs once."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        return [out.cpu() for out in reference(module, inputs)]
    finally:
        torch.backends.cudnn.benchmark = before


def errors(built: Built, checks: list[tuple[Inputs, list[Tensor]]]) -> float:
    return max(worst_error(outputs_of(built, given), expected) for given, expected in checks)


def calibration_data(model: Model, task: Task) -> list[Inputs]:
    """Two calls' inputs, eight where a call has one item; none is among those that outputs are checked on."""
    calls = 2 if task.batch > 1 else 8
    return [moved(model.inputs(task.batch, CALIBRATION_SEED + index), task.device) for index in range(calls)]


def moved(inputs: Inputs, device: str) -> Inputs:
    placed = torch.utils._pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, (inputs.args, inputs.kwargs))
    return Inputs(*placed)


def serve(pipe: Any) -> None:
    """The process's own loop: does what it is asked until the pipe closes."""
    station = Station()
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(station, what)(*args))
        except Exception as error:  # goes to who asked
            traceback.print_exc()
            pipe.send(RuntimeError(f"{type(error).__name__}: {first_line(error)}"))


class Lost(Exception):
    """A process did not answer; the message says why."""


class Remote:
    """A `Station` in a process of its own, which is started when it is first needed, and again after it was lost.

    serve, method: what the process runs, and how multiprocessing starts it.
    """

    def __init__(self, serve: Callable[[Any], None] = serve, method: str = "spawn") -> None:
        self._serve, self._method = serve, method
        self._process: Any = None
        self._pipe: Any = None

    def start(self) -> None:
        """Start the process, so that it imports PyTorch while others work."""
        if self._process is None:
            context: Any = multiprocessing.get_context(self._method)
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=self._serve, args=(theirs,), daemon=False)
            self._process.start()
            theirs.close()

    def build(self, task: Task, limit_s: float = 0.0) -> Outcome:
        """limit_s: how long it may take; 0 for as long as it takes. A process that takes longer is ended."""
        self.start()
        try:
            found: Outcome = self._ask("build", task, limit_s=limit_s)
        except Lost as why:
            return Outcome(why=str(why))
        if found.why:  # an error of the device stays with the process that met it
            self.close()
        return found

    def wall(self, calls: int) -> list[float]:
        found: list[float] = self._ask("wall", calls, limit_s=120)
        return found

    def stream(self, calls: int) -> float:
        return float(self._ask("stream", calls, limit_s=120))

    def forget(self) -> None:
        if self._process is not None:
            with contextlib.suppress(Lost):
                self._ask("forget", limit_s=60)

    def _ask(self, what: str, *args: Any, limit_s: float) -> Any:
        """Raises Lost where no answer comes in time, or the process ended or failed."""
        try:
            self._pipe.send((what, args))
            if not self._pipe.poll(limit_s or None):
                self.close()
                raise Lost(f"it was not done after {limit_s:.0f} s")
            answer = self._pipe.recv()
        except (EOFError, OSError) as gone:
            self._process.join(10)
            status = self._process.exitcode
            self.close()
            raise Lost(f"its process ended with status {status}") from gone
        if isinstance(answer, Exception):
            self.close()
            raise Lost(f"{type(answer).__name__}: {first_line(answer)}") from answer
        return answer

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.terminate()
            self._process.join(10)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = self._pipe = None
