"""Engines at run time, with a TensorRT that is made up: it doubles a float32 vector in the CPU's memory.

No machine here has both TensorRT and a GPU that it takes; `on_gpu/` has the tests of the real one.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from torchsmith.backends.tensorrt import engine as engines
from torchsmith.backends.tensorrt import run
from torchsmith.backends.tensorrt.run import TensorRtRunner
from torchsmith.errors import EngineMismatch, InvalidInput, OutOfDeviceMemory
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import symbol
from torchsmith.ir.types import TensorType
from torchsmith.ops.unary import Unary
from torchsmith.target import Target

LARGEST = 6  # elements that the made-up engine takes
REFUSAL = "The engine cannot run on this GPU, which has compute capability 9.0"


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def problems(self) -> list[str]:
        return self.said

    def forget(self) -> None:
        self.said.clear()


class Context:
    """y = 2 x, of addresses. unknown: whether y's shape is told only when it ran."""

    def __init__(self, log: Log, unknown: bool) -> None:
        self.log, self.unknown = log, unknown
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.streams: list[int] = []
        self.fails = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        if shape[0] > LARGEST:
            self.log.said.append("out of the profile")
        return shape[0] <= LARGEST

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_output_allocator(self, name: str, allocator: Any) -> None:
        self.allocators[name] = allocator

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if self.unknown else self.shape

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        (count,) = self.shape
        if self.unknown:
            allocator = self.allocators["output0"]
            allocator.notify_shape("output0", (count,))
            self.addresses["output0"] = allocator.reallocate_output("output0", 0, 4 * count, 256)
        read = (ctypes.c_float * count).from_address(self.addresses["input0"])
        written = (ctypes.c_float * count).from_address(self.addresses["output0"])
        for i in range(count):
            written[i] = 2 * read[i]
        self.log.said += ["out of luck"] if self.fails else []
        return not self.fails


class Machine:
    """What the made-up TensorRT has. loads, has_memory: whether it gives an engine, and a context."""

    def __init__(self) -> None:
        self.log, self.loads, self.has_memory, self.unknown = Log(), True, True, False
        self.context = Context(self.log, False)
        self.stream = SimpleNamespace(cuda_stream=0, waited=[])
        self.stream.wait_stream = self.stream.waited.append

    def runtime(self, log: Log) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self.deserialized)

    def deserialized(self, plan: bytes) -> Any:
        assert plan == b"a plan"
        if not self.loads:
            self.log.said.append(REFUSAL)
            return None
        self.context.unknown = self.unknown
        return SimpleNamespace(create_execution_context=self.created)

    def created(self) -> Context | None:
        self.log.said += [] if self.has_memory else ["cudaMalloc failed"]
        return self.context if self.has_memory else None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    module = SimpleNamespace(__name__="tensorrt", __version__="10.9", Runtime=made.runtime, IOutputAllocator=Blank)
    monkeypatch.setattr(run, "trt", lambda: module)
    for name, given in {"log": lambda: made.log, "said": lambda: made.log.said[-1], "is_rtx": lambda: False}.items():
        monkeypatch.setattr(run, name, given)
    monkeypatch.setattr(run, "title", lambda: "TensorRT 10.9")
    monkeypatch.setattr(engines, "trt", lambda: module)
    monkeypatch.setattr(engines, "is_rtx", lambda: False)
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "current_stream", lambda *_: made.stream)
    monkeypatch.setattr(cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cuda, "ExternalStream", lambda stream, device: stream)
    monkeypatch.setattr(cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda, "get_device_name", lambda: "NVIDIA H100")
    return made


class Blank:
    """IOutputAllocator's own part."""


def packed(size: Any = "n") -> bytes:
    shape = (symbol(size),) if isinstance(size, str) else (size,)
    with Builder({"n": (1, LARGEST)}) as b:
        graph = b.finish([Unary("neg")(b.input(TensorType(shape, torch.float32)))])
    return engines.pack(b"a plan", graph, Target("cuda", "sm_89"), [])


def loaded(monkeypatch: pytest.MonkeyPatch, graphs: bool = False) -> TensorRtRunner:
    runner = TensorRtRunner(packed())
    runner.device = torch.device("cpu")
    if not graphs:
        monkeypatch.setattr(TensorRtRunner, "_record", lambda self, inputs, stream: None)
    return runner


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "from the data"])
def test_calls(machine: Machine, monkeypatch: pytest.MonkeyPatch, unknown: bool) -> None:
    machine.unknown = unknown
    runner = loaded(monkeypatch)
    if unknown:
        monkeypatch.setattr(TensorRtRunner, "shape_of", lambda self, edge, env: None)
    for size in (3, 5, 3):
        x = torch.randn(size)
        (y,) = runner([x])
        assert torch.equal(y, 2 * x) and y.data_ptr() != x.data_ptr()


def test_inputs_are_made_contiguous(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 2)[:, 0]
    assert torch.equal(loaded(monkeypatch)([x])[0], 2 * x)


def test_another_stream_waits_for_the_last_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, x = loaded(monkeypatch), torch.randn(2)
    for stream in (7, 7, 8, 7):
        machine.stream.cuda_stream = stream
        runner([x])
    assert machine.context.streams == [7, 7, 8, 7] and machine.stream.waited == [7, 8]


def test_graphs_are_recorded_once_a_shape(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up graph runs what was enqueued while it was captured, once more, on the same memory."""
    runs = machine.context.streams

    class Graph:
        def replay(self) -> None:
            context = machine.context
            context.shape, context.addresses = self.shape, dict(self.addresses)
            context.execute_async_v3(99)

    @contextlib.contextmanager
    def capturing(graph: Graph) -> Any:
        yield
        graph.shape, graph.addresses = machine.context.shape, dict(machine.context.addresses)
        runs.pop()  # capturing runs nothing

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    runner = loaded(monkeypatch, graphs=True)
    kept: list[tuple[Tensor, Tensor]] = []
    for size in (3, 3, 4, 3, 4):
        x = torch.randn(size)
        kept.append((x, runner([x])[0]))
    assert runs == [0, 99, 0, 99, 99]
    assert all(torch.equal(y, 2 * x) for x, y in kept)  # later calls leave earlier outputs alone
    assert list(runner._graphs) == [((3,),), ((4,),)]


def test_sizes_outside_of_the_profile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = loaded(monkeypatch)
    with pytest.raises(InvalidInput, match=r"input0 is \(7,\), which is outside of the sizes .*out of the profile"):
        runner([torch.randn(7)])
    assert torch.equal(runner([torch.ones(2)])[0], torch.full((2,), 2.0))


def test_a_run_that_fails(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = loaded(monkeypatch)
    machine.context.fails = True
    with pytest.raises(EngineMismatch, match=r"TensorRT 10\.9 could not run the engine: out of luck"):
        runner([torch.randn(2)])


def test_a_gpu_that_tensorrt_does_not_take(machine: Machine) -> None:
    machine.loads = False
    with pytest.raises(EngineMismatch) as refused:
        TensorRtRunner(packed())
    assert str(refused.value) == (
        "TensorRT 10.9 does not run on this GPU (NVIDIA H100), which has compute capability 9.0: "
        "The engine cannot run on this GPU, which has compute capability 9.0. "
        "Compile the model with backend='cuda', torchsmith's own engine, which runs on it"
    )


def test_no_memory_for_a_context(machine: Machine) -> None:
    machine.has_memory = False
    with pytest.raises(OutOfDeviceMemory, match="no memory for the engine's activations: cudaMalloc failed"):
        TensorRtRunner(packed())


def test_an_engine_of_the_other_kind(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_rtx", lambda: True)
    data = packed()
    with pytest.raises(
        EngineMismatch, match=r"built by TensorRT-RTX 10\.9, and this machine has TensorRT 10\.9; install TensorRT-RTX"
    ):
        TensorRtRunner(data)
