"""Candidates on the device: what they compute, and how long they take inside a CUDA graph."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from torchsmith.backends.cuda.accuracy import Accuracy, References, body_of, index_limit, judge, references
from torchsmith.backends.cuda.candidate import Candidate, Launcher, Memory
from torchsmith.backends.cuda.cubins import Cubin
from torchsmith.backends.cuda.driver import Function, driver
from torchsmith.backends.cuda.float8 import FLOAT8
from torchsmith.backends.cuda.memory import ALIGNMENT
from torchsmith.backends.cuda.steps import Launch
from torchsmith.errors import BackendUnavailable, BuildError, EngineMismatch
from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Node, Value
from torchsmith.target import Target

RUN_MICROSECONDS = 1000.0  # that one replay is to take, so that what is around it does not count
ROUGH_RUNS, MOST_RUNS = 10, 300  # in one graph
HOST_MICROSECONDS = 500_000.0  # that recording a graph may take: libraries may plan each call anew
REPLAYS = 7
HOPELESS = 1.6  # times the best so far, by a first look: not timed any further
L2_BYTES = 50 << 20  # where PyTorch does not tell


class Timer(Protocol):
    """What measures. cubins: by `Kernel.key()`, all that the candidate needs. Both return a sentence where it cannot be run."""

    def check(self, candidate: Candidate, cubins: Mapping[str, Cubin]) -> Accuracy | str: ...

    def time(self, candidate: Candidate, cubins: Mapping[str, Cubin]) -> float | str:
        """Microseconds a run."""


class OutOfMemory(str):
    """A sentence of a timer: it may well run in an engine."""


def device_timer(target: Target) -> DeviceTimer | None:
    """A timer on the current GPU, if it is one of the target's kind."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    if target.arch != f"sm_{major}{minor}":
        return None
    try:
        driver()
    except BackendUnavailable:
        return None
    return DeviceTimer(torch.device("cuda", torch.cuda.current_device()))


class DeviceTimer:
    """Keeps the inputs and references of one node at a time: candidates of the same node should follow one another."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._functions: dict[str, Function] = {}  # kept to the end: unloading one would disturb a graph that is being recorded
        self._bench: Bench | None = None
        self.l2_bytes = L2_BYTES
        if device.type == "cuda":
            self.l2_bytes = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or L2_BYTES
            _wake(device)

    def check(self, candidate: Candidate, cubins: Mapping[str, Cubin]) -> Accuracy | str:
        bench = self.bench(candidate)
        found: Accuracy | str = self._safely(candidate, lambda: bench.check(candidate, self._launcher(cubins)))
        return found

    def time(self, candidate: Candidate, cubins: Mapping[str, Cubin]) -> float | str:
        bench = self.bench(candidate)
        found: float | str = self._safely(candidate, lambda: bench.time(candidate, self._launcher(cubins), self.l2_bytes))
        return found

    def bench(self, candidate: Candidate) -> Bench:
        if self._bench is None or self._bench.node is not candidate.node or self._bench.at != candidate.at:
            self._bench = None  # its memory first
            self._bench = Bench(candidate.node, dict(candidate.at), self.device)
        return self._bench

    def _launcher(self, cubins: Mapping[str, Cubin]) -> Launcher:
        def launch(step: Launch, grid: Sequence[int], arguments: Sequence[Any], stream: int) -> None:
            key = step.kernel.key()
            if key not in self._functions:
                c = cubins[key]
                self._functions[key] = Function(
                    c.code, c.symbol, c.threads, c.shared_bytes, c.pdl, [t for _, t in step.kernel.types]
                )
            self._functions[key].launch(grid, arguments, stream)

        return launch

    def _safely(self, candidate: Candidate, act: Any) -> Any:
        """What `act` gives; a sentence where the driver or a library refuses. Raises BuildError where it took the device along."""
        try:
            return act()
        except torch.OutOfMemoryError:
            self._bench = None
            torch.cuda.empty_cache()
            return OutOfMemory("there is no memory to time it")
        except (EngineMismatch, RuntimeError) as refusal:  # a RuntimeError is how PyTorch's libraries refuse
            sentence = f"{type(refusal).__name__}: {str(refusal).splitlines()[0] if str(refusal) else ''}"[:400]
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as lost:
            raise BuildError(
                f"{candidate.tactic or 'PyTorch'} for {candidate.node.op} broke the GPU's context ({sentence}), which is a bug of "
                "torchsmith's; start a new process: the next build leaves it out"
            ) from lost
        return sentence


class Bench:
    """One node at some sizes: its inputs, and what it should give for them."""

    def __init__(self, node: Node, at: dict[str, int], device: torch.device) -> None:
        self.node, self.at, self.device = node, at, device
        self.body = body_of(node, at)
        self.best: float | None = None
        self._inputs: dict[Value, Tensor] | None = None
        self._references: References | None = None
        self._constants: dict[Value, Tensor] = {}

    # ---- inputs ------------------------------------------------------------------------------------------------------------

    def inputs(self, candidate: Candidate) -> dict[Value, Tensor]:
        """Storage of what the node reads and is no constant, by roots, filled. The first draw is taken that stays finite."""
        if self._inputs is None:
            for draw in (_normal, _positive, _small):
                self._inputs = self._drawn(candidate, draw)
                self._references = None
                if self.references(candidate).is_finite():
                    break
        assert self._inputs is not None
        return self._inputs

    def _drawn(self, candidate: Candidate, draw: Any) -> dict[Value, Tensor]:
        generator = torch.Generator(self.device).manual_seed(0)
        bound = dict(zip(dict.fromkeys(self.node.inputs), self.body.inputs, strict=True))
        storage: dict[Value, Tensor] = {}
        for value in dict.fromkeys(self.node.inputs):
            root = candidate.views[value].root
            if root in storage or root in candidate.tensors:
                continue
            numel, dtype = self.numel(root, candidate), value.type.dtype
            if dtype == FLOAT8:  # what was quantized: all of its range
                drawn = draw(numel, generator, self.device) * (torch.finfo(FLOAT8).max / 4)
                storage[root] = drawn.clamp(torch.finfo(FLOAT8).min, torch.finfo(FLOAT8).max).to(FLOAT8)
            elif dtype.is_floating_point:
                storage[root] = draw(numel, generator, self.device).to(dtype)
            elif dtype == torch.bool:
                storage[root] = torch.rand(numel, generator=generator, device=self.device) < 0.9
            elif dtype == torch.int8:  # what was quantized: no index
                storage[root] = torch.randint(-128, 128, (numel,), generator=generator, device=self.device, dtype=dtype)
            else:
                limit = index_limit(self.body, bound[value])
                storage[root] = torch.randint(limit, (numel,), generator=generator, device=self.device, dtype=dtype)
        return storage

    def numel(self, root: Value, candidate: Candidate) -> int:
        """Elements from a root's first to its last."""
        shape, strides = bind(root.type.shape, self.at), bind(candidate.views[root].strides, self.at)
        return 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))

    def constant(self, root: Value, candidate: Candidate) -> Tensor:
        """A constant's elements on the device."""
        if root not in self._constants:
            tensor, op = candidate.tensors[root].detach().to(self.device), candidate.prepared.get(root)
            plain = op is None or self.device.type != "cuda"
            self._constants[root] = tensor.contiguous().reshape(-1) if op is None or plain else op.prepared(tensor)
        return self._constants[root]

    def references(self, candidate: Candidate) -> References:
        if self._references is None:
            memory = Memory(self, candidate, self._inputs or {})
            with torch.no_grad(), torch.device(self.device):
                self._references = references(
                    self.body, [memory.tensor(v) for v in dict.fromkeys(self.node.inputs)], candidate.tf32
                )
        return self._references

    # ---- the two questions -------------------------------------------------------------------------------------------------

    def check(self, candidate: Candidate, launch: Launcher) -> Accuracy:
        memory = Memory(self, candidate, self.inputs(candidate))
        memory.run(launch)
        found = [memory.tensor(v) for v in self.node.outputs]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if trespass := memory.trespass():
            return Accuracy(float("inf"), trespass)
        return judge(found, self.references(candidate))

    def time(self, candidate: Candidate, launch: Launcher, l2_bytes: int) -> float:
        given = self.inputs(candidate)
        first = Memory(self, candidate, given)
        first.run(launch)  # also what makes libraries choose their kernels
        sets = [first]
        for constants in self._copies(candidate, first, l2_bytes):
            sets.append(Memory(self, candidate, given, first, constants))
        rough, host = _timed(lambda: first.run(launch), self.device)
        most = max(1, min(MOST_RUNS, int(HOST_MICROSECONDS / host)))
        if rough < RUN_MICROSECONDS / 2 or host > rough / 2:  # else the host's share of it does not matter
            rough = _replayed(sets, launch, min(ROUGH_RUNS, most), 3, self.device)
        if self.best is not None and rough > HOPELESS * self.best:
            return rough
        runs = max(1, min(most, int(RUN_MICROSECONDS / max(rough, 0.1))))
        found = _replayed(sets, launch, runs, REPLAYS if rough < RUN_MICROSECONDS else 3, self.device)
        self.best = found if self.best is None else min(self.best, found)
        return found

    def _copies(self, candidate: Candidate, first: Memory, l2_bytes: int) -> list[dict[Value, Tensor]]:
        """More copies of the weights, for runs to take in turns, so that the L2 cache has not seen them for a while."""
        roots = [r for r in first.roots if r in candidate.tensors]
        size = sum(self.constant(r, candidate).nbytes for r in roots)
        if not candidate.cold or size == 0:
            return []
        count = min(MOST_RUNS, -(-2 * l2_bytes // size)) - 1
        copies: list[dict[Value, Tensor]] = [{} for _ in range(count)]
        for root in roots:
            source = self.constant(root, candidate)
            padded = -(-source.nbytes // ALIGNMENT) * ALIGNMENT // source.dtype.itemsize
            whole = torch.empty((count, padded), dtype=source.dtype, device=self.device)
            whole[:, : source.numel()] = source
            for number, copy in enumerate(copies):
                copy[root] = whole[number, : source.numel()]
        return copies


def _replayed(sets: Sequence[Memory], launch: Launcher, runs: int, replays: int, device: torch.device) -> float:
    """Microseconds a run, the median over replays of a graph of so many runs one after another."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for number in range(runs):
                sets[number % len(sets)].run(launch)
        finally:
            graph.capture_end()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 2)]  # type: ignore[no-untyped-call]
        graph.replay()
        for event in events[:-1]:
            event.record(stream)
            graph.replay()
        events[-1].record(stream)
    events[-1].synchronize()
    # the first of them may have waited for the host
    times: list[float] = [a.elapsed_time(b) for a, b in itertools.pairwise(events)][1:]
    return 1000.0 * statistics.median(times) / runs


def _timed(act: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Microseconds of what is enqueued, what the host takes for it included; and of the host's part alone."""
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record(torch.cuda.current_stream(device))
    started = time.perf_counter()
    act()
    host = 1e6 * (time.perf_counter() - started)
    last.record(torch.cuda.current_stream(device))
    last.synchronize()
    return 1000.0 * float(first.elapsed_time(last)), host


def _wake(device: torch.device) -> None:
    """A GPU with nothing to do clocks down."""
    x = torch.randn(2048, 2048, device=device)
    for _ in range(200):
        x = (x @ x).clamp(-1, 1)
    torch.cuda.synchronize(device)


def _normal(numel: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(numel, generator=generator, device=device)


def _positive(numel: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(numel, generator=generator, device=device) + 0.1


def _small(numel: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return 0.01 * torch.randn(numel, generator=generator, device=device)
