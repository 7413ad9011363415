"""Engines at run time: one CUDA graph per input shape, replayed per call.

A call points the graph's first kernels to its inputs and the last ones to fresh outputs, and replays, all on the caller's
stream. Calls of one shape take turns, on whatever streams they come.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from torchsmith import sizes
from torchsmith.backends.cuda.driver import Function
from torchsmith.backends.cuda.graphs import RecordedGraph
from torchsmith.backends.cuda.memory import ALIGNMENT
from torchsmith.backends.cuda.plan import LaunchStep, Plan, Variant, read
from torchsmith.backends.cuda.precision import running
from torchsmith.backends.cuda.storage import Memory, memory_errors, out_of_memory
from torchsmith.errors import EngineMismatch, InvalidInput
from torchsmith.target import Target

# Graphs of so many shapes are kept; the one that was not used for longest goes.
SHAPES_KEPT = 16
_recording = threading.Lock()  # PyTorch records one graph at a time in a process
NOWHERE = -1  # no tensor's address
POINTER_ALIGNMENT = 16  # bytes; what kernels expect of addresses, and PyTorch's allocator gives unless a tensor is a part of one


class CudaRunner:
    """A loaded engine, called with tensors on the device that was current when it was loaded. Thread-safe."""

    def __init__(self, engine: bytes, target: Target) -> None:
        self.plan, tensors = read(engine)
        check_target(self.plan.target, target)
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.functions = {c: functions_of(self.plan, tensors, c) for c in {v.carveout for v in self.plan.variants}}
        with memory_errors("its weights"):
            prepared = self.plan.prepared
            self.constants = upload({n: tensors[n] for n in self.plan.constants if n not in prepared}, self.device)
            self.constants |= {n: op.prepared(tensors[n].to(self.device)) for n, op in prepared.items()}
        self._symbols = _symbol_places(self.plan)
        self._instances: OrderedDict[tuple[int, ...], Instance] = OrderedDict()
        self._lock = threading.Lock()
        self._only: Instance | None = None

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        try:
            return (self._only or self._sized(inputs)).run(inputs)
        except torch.OutOfMemoryError as error:  # of an output; a `with` would cost every call
            raise out_of_memory("a call's outputs") from error

    def _sized(self, inputs: Sequence[Tensor]) -> Instance:
        key = tuple(inputs[i].shape[axis] for i, axis in self._symbols.values())
        with self._lock:
            instance = self._instances.get(key)
            if instance is not None:
                self._instances.move_to_end(key)
        return instance or self._instance(key)

    def _instance(self, key: tuple[int, ...]) -> Instance:
        env = dict(zip(self._symbols, key, strict=True))
        with self._lock:
            if key not in self._instances:
                with torch.inference_mode(False):  # its memory is written to by calls in any mode
                    self._instances[key] = Instance(self, env)
                while len(self._instances) > SHAPES_KEPT:
                    self._instances.popitem(last=False)
                if not self._symbols:
                    self._only = self._instances[key]
            return self._instances[key]

    def infer_only(self, inputs: Sequence[Tensor]) -> Callable[[], None]:
        """The recorded graph alone on these inputs and its own outputs, to be timed against a whole call."""
        outputs = self(inputs)  # the first call records, and the graph goes on writing where it wrote
        instance = self._only or self._sized(inputs)
        graph, stream, held = instance.graph, instance.current_stream(), (inputs, outputs, instance)

        def replay() -> None:
            assert held
            graph.launch(stream)

        return replay

    def memory_bytes(self) -> dict[str, int]:
        """Device memory held: weights, and for every shape that was met its arena and edges."""
        held = {
            "weights": sum(
                t.untyped_storage().nbytes() for t in {t.untyped_storage().data_ptr(): t for t in self.constants.values()}.values()
            )
        }
        for key, instance in self._instances.items():
            held["x".join(map(str, key)) or "graph"] = instance.memory_bytes
        return held


class Instance:
    """The engine at one set of sizes: its memory, and its graph once it was called.

    Inputs and outputs that only our own kernels touch are *bound*: the graph reads the caller's tensor and writes the one that
    is handed out, and the engine keeps no memory for them. Others are copied.
    """

    def __init__(self, runner: CudaRunner, env: Mapping[str, int], variant: Variant | None = None) -> None:
        plan = runner.plan
        self.runner, self.env = runner, dict(env)
        self.variant = variant or nearest(plan.variants, self.env)
        self.functions = runner.functions[self.variant.carveout]
        self.memory = Memory(plan, self.variant, runner.constants, self.env, runner.device)
        self._lock = threading.Lock()
        self._graph: RecordedGraph | None = None
        # the stream's handle; a tenth of the time of `torch.cuda.current_stream`, and what Triton's own launcher asks
        self.current_stream: Callable[[], int] = partial(torch._C._cuda_getCurrentRawStream, runner.device.index)
        self._home = self.current_stream()  # that PyTorch gives the memory back to
        self._stream = self._home  # of the last call
        self._outputs: list[Tensor | None] = []  # in the engine's memory; None for those that are bound
        self._fresh: list[Tensor | None] = []  # for the next call on the same stream: made while the GPU is at work
        bound = self.memory.bound
        self._edges_in = [(n, self.memory.strides(n) if n in bound else None) for n in plan.inputs]  # None: it is copied
        self._at = [NOWHERE] * len(plan.inputs)  # where the graph reads those inputs that it reads where they are

    @property
    def graph(self) -> RecordedGraph:
        """After a first call. Raises InvalidInput before."""
        if self._graph is None:
            raise InvalidInput("the engine records its graph in its first call, and there was none")
        return self._graph

    @property
    def memory_bytes(self) -> int:
        return self.memory.bytes

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What comes before the launch is what a call costs; what comes behind it is done while the GPU is at work."""
        stream = self.current_stream()
        self._lock.acquire()  # a `with` takes a third longer
        try:
            if stream and torch.cuda.is_current_stream_capturing():  # which may wait for nothing outside the user's graph
                return self._first(inputs)
            graph = self._graph
            if stream != self._stream:
                self._follow(stream)
            if graph is None:
                return self._first(inputs)
            handed = self._fresh or self._outputs_to_hand()  # first: where there is no memory, the inputs' edges stay as they are
            number = 0
            for given in inputs:  # lists of addresses and strides to compare take three times as long
                if given.data_ptr() != self._at[number] or not given.is_contiguous():
                    self._point(graph, inputs)
                    break
                number += 1  # noqa: SIM113 - enumerate takes a third longer
            graph.launch(stream)
            results = [_handed(fresh, own) for fresh, own in zip(handed, self._outputs, strict=True)]
            try:
                self._fresh = self._outputs_to_hand()
            except torch.OutOfMemoryError:  # this call has what it needs
                self._fresh = []
            return results
        finally:
            self._lock.release()

    def _point(self, graph: RecordedGraph, inputs: Sequence[Tensor]) -> None:
        """Let the graph read these inputs, or copies of those that it cannot read where they are."""
        for number, ((name, strides), given) in enumerate(zip(self._edges_in, inputs, strict=True)):
            self._at[number], address = NOWHERE, given.data_ptr()
            in_place = strides is not None and given.stride() == strides and address % POINTER_ALIGNMENT == 0
            if not in_place:
                address = self.memory.copied(name, given).data_ptr()
            if strides is not None:
                graph.put(name, address)
            if in_place and given.is_contiguous():  # what `run` looks for
                self._at[number] = address

    def _follow(self, stream: int) -> None:
        """Let this call's stream wait for the last one's: the memory is shared with the call before."""
        if self._graph is not None:
            device = self.runner.device
            torch.cuda.current_stream(device).wait_stream(torch.cuda.ExternalStream(self._stream, device))  # type: ignore[no-untyped-call]
        self._stream, self._fresh = stream, []

    def __del__(self) -> None:
        """The memory may be used again behind the last call, whatever stream that was on."""
        memory = getattr(self, "memory", None)
        if memory is None or self._graph is None or self._stream == self._home or sys.is_finalizing():
            return
        last = torch.cuda.ExternalStream(self._stream, self.runner.device)  # type: ignore[no-untyped-call]
        with _disable_current_modes():  # garbage may be collected while someone traces
            for tensor in memory.own():
                tensor.record_stream(last)

    def _outputs_to_hand(self) -> list[Tensor | None]:
        """New memory for every output that the next launch writes to directly, None for the others."""
        memory, graph, outputs = self.memory, self._graph, self.runner.plan.outputs
        assert graph is not None
        with torch.inference_mode(False):  # the next call may be outside the mode that this one is in
            made = [memory.new(n) if n in memory.bound else None for n in outputs]
        for name, fresh in zip(outputs, made, strict=True):
            if fresh is not None:
                graph.put(name, fresh.data_ptr())
        return made

    def _first(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the steps one by one, which is also what makes libraries choose their kernels; then record the graph."""
        plan, bound = self.runner.plan, self.memory.bound
        with torch.cuda.device(self.runner.device), memory_errors("a call"):
            stream = torch.cuda.current_stream()
            self.lend(inputs)
            try:
                outputs = self.enqueue(stream)
                results = [o if n in bound else o.clone() for n, o in zip(plan.outputs, outputs, strict=True)]
                if not torch.cuda.is_current_stream_capturing():
                    self._record(stream)
            finally:
                self.memory.take_back()
        return results

    def lend(self, inputs: Sequence[Tensor]) -> None:
        """Let the steps work on these inputs, and on new memory for the outputs, until `memory.take_back()`."""
        for (name, strides), given in zip(self._edges_in, inputs, strict=True):
            fits = strides is not None and given.stride() == strides and given.data_ptr() % POINTER_ALIGNMENT == 0
            if fits and not self.memory.overlaps(given):
                self.memory.lend(name, given)
            else:
                self.memory.copied(name, given)
        with torch.inference_mode(False):  # what is handed out may be used outside the mode that this call is in
            for name in self.memory.bound.difference(self.runner.plan.inputs):
                self.memory.lend(name, self.memory.new(name))

    def _record(self, stream: torch.cuda.Stream) -> None:
        side = torch.cuda.Stream(self.runner.device)  # type: ignore[no-untyped-call]
        side.wait_stream(stream)
        captured = torch.cuda.CUDAGraph(keep_graph=True)
        with _recording, torch.cuda.stream(side):
            torch._C._cuda_clearCublasWorkspaces()  # each graph has its own, which no other one runs over
            captured.capture_begin(capture_error_mode="thread_local")
            try:
                outputs = self.enqueue(side)
            finally:
                captured.capture_end()
                torch._C._cuda_clearCublasWorkspaces()
        stream.wait_stream(side)
        bound = self.memory.bound
        edges = {name: (self.memory.given[name].data_ptr(), self.memory.given[name].nbytes) for name in bound}
        self._outputs = [None if n in bound else o for n, o in zip(self.runner.plan.outputs, outputs, strict=True)]
        self._graph = RecordedGraph(captured, self.functions, edges)

    def enqueue(self, stream: torch.cuda.Stream, count: int | None = None) -> list[Tensor]:
        """Enqueue the steps, or the first `count`, in which case no outputs are given; they are in the engine's memory."""
        memory, functions = self.memory.fresh(), self.functions
        for index, step in enumerate(self.variant.steps[:count]):
            if isinstance(step, LaunchStep):
                arguments = [
                    memory.address(a["value"]) if isinstance(a, dict) else sizes.evaluate(a, self.env) for a in step.arguments
                ]
                functions[step.kernel].launch([sizes.evaluate(g, self.env) for g in step.grid], arguments, stream.cuda_stream)
            else:
                plain = torch.autocast("cuda", enabled=False)
                with torch.no_grad(), plain, torch.device(self.runner.device), running(step.op, step.tf32):
                    given = step.op.bound(self.env).reference(*(memory.tensor(n) for n in step.inputs))
                memory.adopt(step, given if isinstance(given, tuple) else (given,))
            memory.release(index)
        return [memory.tensor(name) for name in self.runner.plan.outputs] if count is None else []


def _handed(fresh: Tensor | None, own: Tensor | None) -> Tensor:
    """What the graph wrote directly, or a copy of what it left in the engine's memory."""
    if fresh is not None:
        return fresh
    assert own is not None
    return own.clone()


def functions_of(plan: Plan, tensors: Mapping[str, Tensor], carveout: int | None = None) -> list[Function]:
    """Every kernel on the current device. Raises EngineMismatch for code that it cannot load."""
    made: dict[tuple[str, str], Function] = {}
    for k in plan.kernels:
        if (k.code, k.symbol) not in made:
            code = tensors[k.code].numpy().tobytes()
            made[k.code, k.symbol] = Function(code, k.symbol, k.threads, k.shared_bytes, k.pdl, k.types, carveout)
    return [made[k.code, k.symbol] for k in plan.kernels]


def upload(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Flat device copies, in one piece of memory, each at a multiple of 256 bytes."""
    offsets, size = dict[str, int](), 0
    for name, tensor in tensors.items():
        offsets[name] = size
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8)
    for name, tensor in tensors.items():
        host[offsets[name] : offsets[name] + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8)
    blob = host.to(device)
    return {n: blob[offsets[n] : offsets[n] + t.nbytes].view(t.dtype) for n, t in tensors.items()}


def check_target(built: Target, here: Target) -> None:
    """Raises EngineMismatch where the engine's kernels do not run on this GPU."""
    want, have = int(built.arch.removeprefix("sm_")), int(here.arch.removeprefix("sm_"))
    runs = want == have or (want < 90 and want // 10 == have // 10 and want < have)
    if not runs:
        raise EngineMismatch(
            f"the engine was built for sm_{want}, and this GPU ({here.chip}) is sm_{have}; "
            f"compile the model here, or with target='sm_{have}'"
        )


def nearest(variants: Sequence[Variant], env: Mapping[str, int]) -> Variant:
    """The variant that was chosen for the sizes nearest to these, as ratios."""

    def distance(variant: Variant) -> float:
        ratio = 1.0
        for name, size in env.items():
            at = max(1, variant.at.get(name, size))
            ratio *= max(at / max(1, size), max(1, size) / at)
        return ratio

    return min(variants, key=distance)


def _symbol_places(plan: Plan) -> dict[str, tuple[int, int]]:
    """Where each symbol stands alone: (input, axis)."""
    places: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(plan.inputs):
        for axis, size in enumerate(plan.values[name].shape):
            if isinstance(size, str) and size.isidentifier():
                places.setdefault(size, (number, axis))
    return places
