"""Engines at run time, with a TensorRT that is made up: it doubles a float32 vector in the CPU's memory.

No machine here has both TensorRT and a GPU that it takes; `on_gpu/` has the tests of the real one.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import time
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
    """y = 2 x, of addresses. What is enqueued while a graph is recorded runs when that is replayed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.ran: list[tuple[int, int]] = []  # stream, where x was
        self.inside = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        if shape[0] > LARGEST:
            self.machine.log.said.append("out of the profile")
        return shape[0] <= LARGEST

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_output_allocator(self, name: str, allocator: Any) -> None:
        self.allocators[name] = allocator

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if self.machine.unknown else self.shape

    def execute_async_v3(self, stream: int) -> bool:
        assert not self.inside, "TensorRT's contexts are for one thread at a time"
        self.inside = True
        if self.machine.unknown:
            allocator = self.allocators["output0"]
            allocator.notify_shape("output0", self.shape)
            self.addresses["output0"] = allocator.reallocate_output("output0", 0, 4 * self.shape[0], 256)
        call = (self.shape[0], self.addresses["input0"], self.addresses["output0"])
        if self.machine.recording is None:
            self.ran.append((stream, self.addresses["input0"]))
            doubled(*call)
        else:
            self.machine.recording.append(call)
        time.sleep(0)  # another thread may try
        self.inside = False
        self.machine.log.said += ["out of luck"] if self.machine.fails else []
        return not self.machine.fails


def doubled(count: int, x: int, y: int) -> None:
    read, written = ((ctypes.c_float * count).from_address(address) for address in (x, y))
    for i in range(count):
        written[i] = 2 * read[i]


class Stream:
    def __init__(self, handle: int) -> None:
        self.cuda_stream, self.waited = handle, list[int]()

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other.cuda_stream)


class Graph:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"  # other threads may go on
        self.machine.recording = self.calls = list[tuple[int, int, int]]()

    def capture_end(self) -> None:
        self.machine.recording = None
        if self.machine.refuses_graphs:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def replay(self) -> None:
        self.machine.replays += 1
        for call in self.calls:
            doubled(*call)


class Machine:
    """What the made-up TensorRT has. loads, has_memory: whether it gives an engine, and a context. unknown: whether y's shape is
    told only when it ran."""

    def __init__(self) -> None:
        self.log, self.loads, self.has_memory, self.unknown, self.fails = Log(), True, True, False, False
        self.refuses_graphs, self.capturing, self.replays = False, False, 0
        self.recording: list[tuple[int, int, int]] | None = None
        self.context = Context(self)
        self.stream, self.side = Stream(0), Stream(5)
        self.used_on: list[int] = []  # streams that memory was said to be used on
        self.host_code: list[bool] = []

    def runtime(self, log: Log) -> Any:
        self.made = SimpleNamespace(deserialize_cuda_engine=self.deserialized, engine_host_code_allowed=False)
        return self.made

    def deserialized(self, plan: bytes) -> Any:
        assert plan == b"a plan"
        self.host_code.append(self.made.engine_host_code_allowed)
        if not self.loads:
            self.log.said.append(REFUSAL)
            return None
        return SimpleNamespace(create_execution_context=self.created, create_runtime_config=SimpleNamespace)

    def created(self, settings: Any = None) -> Context | None:
        self.settings = settings
        self.log.said += [] if self.has_memory else ["cudaMalloc failed"]
        return self.context if self.has_memory else None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    strategies = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    module = SimpleNamespace(
        __name__="tensorrt", __version__="10.9", Runtime=made.runtime, IOutputAllocator=Blank, CudaGraphStrategy=strategies
    )
    monkeypatch.setattr(run, "trt", lambda: module)
    for name, given in {"log": lambda: made.log, "said": lambda: made.log.said[-1], "is_rtx": lambda: False}.items():
        monkeypatch.setattr(run, name, given)
    monkeypatch.setattr(run, "title", lambda: "TensorRT 10.9")
    monkeypatch.setattr(engines, "trt", lambda: module)
    monkeypatch.setattr(engines, "is_rtx", lambda: False)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: made.used_on.append(stream.cuda_stream), raising=False)
    cuda = {
        "current_device": lambda: 0,
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": lambda *_: made.stream,
        "is_current_stream_capturing": lambda: made.capturing,
        "ExternalStream": lambda stream, device: Stream(stream),
        "Stream": lambda device: made.side,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": lambda: Graph(made),
        "get_device_capability": lambda: (9, 0),
        "get_device_name": lambda: "NVIDIA H100",
    }
    for name, given in cuda.items():
        monkeypatch.setattr(torch.cuda, name, given)
    return made


class Blank:
    """IOutputAllocator's own part."""


def packed(size: Any = "n", host_code: bool = False) -> bytes:
    shape = (symbol(size),) if isinstance(size, str) else (size,)
    with Builder({"n": (1, LARGEST)}) as b:
        graph = b.finish([Unary("neg")(b.input(TensorType(shape, torch.float32)))])
    return engines.pack(b"a plan", graph, Target("cuda", "sm_89"), [], host_code)


def loaded() -> TensorRtRunner:
    runner = TensorRtRunner(packed())
    runner.device = torch.device("cpu")
    return runner


@pytest.mark.parametrize("unknown", [False, True], ids=["known", "from the data"])
def test_calls(machine: Machine, monkeypatch: pytest.MonkeyPatch, unknown: bool) -> None:
    machine.unknown = unknown
    runner = loaded()
    if unknown:
        monkeypatch.setattr(TensorRtRunner, "shape_of", lambda self, edge, inputs: None)
    for size in (3, 5, 3):
        x = torch.randn(size)
        (y,) = runner([x])
        assert torch.equal(y, 2 * x) and y.data_ptr() != x.data_ptr()
    assert machine.replays == (0 if unknown else 1)  # what is not known can be in no graph


def test_inputs_are_made_contiguous(machine: Machine) -> None:
    x = torch.randn(4, 2)[:, 0]
    assert torch.equal(loaded()([x])[0], 2 * x)


def test_the_default_stream_has_another_beside_it(machine: Machine) -> None:
    """On the default one TensorRT would wait for the whole device."""
    runner = loaded()
    runner([torch.randn(2)])
    assert [stream for stream, _ in machine.context.ran] == [5]
    assert machine.side.waited == [0, 0] and machine.stream.waited == [5, 5]  # once for the call, once to record it
    machine.stream.cuda_stream = 7
    runner([torch.randn(3)])
    assert [stream for stream, _ in machine.context.ran] == [5, 7]


def test_another_stream_waits_for_the_last_one(machine: Machine) -> None:
    runner, x = loaded(), torch.randn(2)
    machine.refuses_graphs = True
    for handle in (7, 7, 8, 7):
        machine.stream.cuda_stream = handle
        runner([x])
    assert [stream for stream, _ in machine.context.ran] == [7, 7, 8, 7]
    assert machine.stream.waited == [7, 8]


def test_memory_that_stays_is_not_given_back_too_early(machine: Machine) -> None:
    """PyTorch's allocator knows the stream that memory was made on, and is told of the others."""
    runner, x = loaded(), torch.randn(2)
    for handle in (7, 7, 8):
        machine.stream.cuda_stream = handle
        runner([x])
    assert machine.used_on == [8, 8]  # an input, and an output


def test_graphs_are_recorded_once_a_shape(machine: Machine) -> None:
    runner = loaded()
    kept: list[tuple[Tensor, Tensor]] = []
    for size in (3, 3, 4, 3, 4):
        x = torch.randn(size)
        kept.append((x, runner([x])[0]))
    assert len(machine.context.ran) == 2 and machine.replays == 3
    assert all(torch.equal(y, 2 * x) for x, y in kept)  # later calls leave earlier outputs alone
    assert list(runner._kept) == [((3,),), ((4,),)]


def test_the_shapes_that_were_used_last_are_kept(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHAPES_KEPT", 2)
    runner = loaded()
    for size in (1, 2, 1, 3):
        runner([torch.randn(size)])
    assert list(runner._kept) == [((1,),), ((3,),)]


def test_an_engine_that_cannot_be_recorded_runs_without_a_graph(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.refuses_graphs = True
    runner = loaded()
    with caplog.at_level(logging.INFO, "torchsmith.tensorrt"):
        for _ in range(3):
            x = torch.randn(2)
            assert torch.equal(runner([x])[0], 2 * x)
    assert machine.replays == 0 and len(machine.context.ran) == 3
    assert [r.getMessage() for r in caplog.records] == [
        "this engine runs without a CUDA graph: CUDA error: operation failed due to a previous error during capture"
    ]


def test_tensorrt_rtx_records_by_itself(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graphs are right for the addresses that it recorded, so that these stay; it is called each time."""
    for module in (run, engines):
        monkeypatch.setattr(module, "is_rtx", lambda: True)
    runner = loaded()
    assert machine.settings.cuda_graph_strategy == "whole"
    for _ in range(4):
        x = torch.randn(3)
        assert torch.equal(runner([x])[0], 2 * x)
    assert machine.replays == 0
    assert len(machine.context.ran) == 4 and len({address for _, address in machine.context.ran[1:]}) == 1


def test_tensorrt_records_nothing_by_itself(machine: Machine) -> None:
    loaded()
    assert machine.settings is None


def test_in_a_graph_of_the_users(machine: Machine) -> None:
    """Nothing outside of it is waited for, and no graph of ours is recorded or replayed within."""
    runner, x = loaded(), torch.randn(2)
    runner([x])
    machine.stream = Stream(9)
    machine.capturing = True
    assert torch.equal(runner([x])[0], 2 * x)
    assert machine.stream.waited == [] and machine.replays == 0 and machine.context.ran[-1][0] == 9
    machine.context.is_stream_capturable = lambda stream: False  # type: ignore[attr-defined]
    with pytest.raises(EngineMismatch, match="cannot run this engine while a CUDA graph is recorded; call the module outside"):
        runner([x])


def test_modes_of_calls_do_not_matter(machine: Machine) -> None:
    """Memory that was made in inference mode could not be written to outside of it."""
    runner, x = loaded(), torch.randn(3)
    with torch.inference_mode():
        runner([x])
    weight = torch.ones(3, requires_grad=True)
    (y,) = runner([x * weight])
    assert torch.equal(y, 2 * x) and not y.requires_grad and not y.is_inference()


def test_threads_take_turns(machine: Machine) -> None:
    runner, wrong = loaded(), list[int]()
    machine.refuses_graphs = True

    def work(number: int) -> None:
        for size in (2, 3, 4) * 20:
            x = torch.full((size,), float(number))
            if not torch.equal(runner([x])[0], 2 * x):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.context.ran) == 6 * 60 and not wrong


def test_a_call_without_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*sizes: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    runner, x = loaded(), torch.randn(2)
    monkeypatch.setattr(torch, "empty", none)
    with pytest.raises(OutOfDeviceMemory, match=r"no memory for a call's inputs and outputs \(CUDA out of memory"):
        runner([x])


def test_parts_of_tensorrt_that_engines_bring_run_where_the_user_asked_for_them(machine: Machine) -> None:
    TensorRtRunner(packed())
    TensorRtRunner(packed(host_code=True))
    assert machine.host_code == [False, True]


def test_sizes_outside_of_the_profile(machine: Machine) -> None:
    runner = loaded()
    with pytest.raises(InvalidInput, match=r"input0 is \(7,\), which is outside of the sizes .*out of the profile"):
        runner([torch.randn(7)])
    assert torch.equal(runner([torch.ones(2)])[0], torch.full((2,), 2.0))


def test_a_run_that_fails(machine: Machine) -> None:
    runner = loaded()
    machine.fails = True
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
