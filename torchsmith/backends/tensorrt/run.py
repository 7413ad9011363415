"""TensorRT engines at run time: `execute_async_v3` in the order of the caller's stream, as a CUDA graph for each input shape."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchsmith import sizes
from torchsmith.backends.tensorrt.engine import Edge, Engine, parse
from torchsmith.backends.tensorrt.library import is_rtx, log, said, title, trt
from torchsmith.errors import EngineMismatch, InvalidInput, OutOfDeviceMemory

SHAPES_KEPT = 16  # sets of sizes; the one that was not used for longest goes
Shapes = tuple[tuple[int, ...], ...]
_LOG = logging.getLogger("torchsmith.tensorrt")
_recording = threading.Lock()  # PyTorch records one graph at a time in a process


class TensorRtRunner:
    """A loaded engine on the device that was current when it was loaded. Thread-safe: calls take turns.

    The first call at a set of sizes is a plain one, by which TensorRT prepares itself. From then on calls run as a CUDA graph,
    between memory that stays: TensorRT's engines in one that is recorded here; TensorRT-RTX records its own, as it goes on to
    compile better kernels after the first calls.
    """

    def __init__(self, data: bytes) -> None:
        """Raises EngineMismatch where the engine is of another kind or version of TensorRT, or does not run on this GPU."""
        self.engine = parse(data)
        check_library(self.engine)
        log().forget()
        self._runtime = trt().Runtime(log())
        if self.engine.host_code:
            self._runtime.engine_host_code_allowed = True
        self._loaded = self._runtime.deserialize_cuda_engine(self.engine.plan.numpy().tobytes())
        if self._loaded is None:
            raise EngineMismatch(refusal_of(said()))
        self._context = context_of(self._loaded)
        if self._context is None:
            raise OutOfDeviceMemory(
                f"the GPU has no memory for the engine's activations: {said()}; free other tensors, and try again"
            )
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._stream: int | None = None  # of the last call
        self._kept: OrderedDict[Shapes, Kept | None] = OrderedDict()
        self._symbols = symbol_places(self.engine.inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Raises InvalidInput for sizes outside of those that the engine was built for, and OutOfDeviceMemory."""
        # memory that stays is written to by calls in any mode, and what is handed out may be used in any
        with self._lock, torch.cuda.device(self.device), torch.inference_mode(False), torch.no_grad():
            try:
                return self._call([t.contiguous() for t in inputs])
            except torch.OutOfMemoryError as error:
                raise OutOfDeviceMemory(
                    f"the GPU has no memory for a call's inputs and outputs ({error}); use a smaller batch, or free other tensors"
                ) from error

    def _call(self, given: Sequence[Tensor]) -> list[Tensor]:
        stream = torch.cuda.current_stream()
        if torch.cuda.is_current_stream_capturing():  # which may wait for nothing outside of the user's graph
            check_capturable(self._context, stream)
            return self._enqueue(given, stream)
        self._follow(stream)
        key = tuple(tuple(t.shape) for t in given)
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            for own, tensor in zip(kept.inputs, given, strict=True):
                own.copy_(tensor)
            kept.run(stream)
            return [output.clone() for output in kept.outputs]
        with self._beside(stream) as side:
            outputs = self._enqueue(given, side)
        if key not in self._kept:
            self._kept[key] = self._keep(given, stream)
            while len(self._kept) > SHAPES_KEPT:
                self._kept.popitem(last=False)
        return outputs

    def _follow(self, stream: Any) -> None:
        """Let this call's stream wait for the last one's: memory is shared with the call before."""
        if self._stream is not None and self._stream != stream.cuda_stream:
            stream.wait_stream(torch.cuda.ExternalStream(self._stream, self.device))  # type: ignore[no-untyped-call]
            for kept in filter(None, self._kept.values()):
                for tensor in (*kept.inputs, *kept.outputs):
                    tensor.record_stream(stream)  # it goes back to the stream that it was made on
        self._stream = stream.cuda_stream

    @contextmanager
    def _beside(self, stream: Any) -> Iterator[Any]:
        """The stream, or in place of the default one another, as TensorRT would wait there for the whole device."""
        if stream.cuda_stream:
            yield stream
            return
        self._side.wait_stream(stream)
        try:
            yield self._side
        finally:
            stream.wait_stream(self._side)

    def _enqueue(self, inputs: Sequence[Tensor], stream: Any, outputs: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Run once. outputs: memory to write to, else new memory."""
        context = self._context
        for edge, tensor in zip(self.engine.inputs, inputs, strict=True):
            if not context.set_input_shape(edge.name, tuple(tensor.shape)):
                raise InvalidInput(
                    f"input {edge.name} is {tuple(tensor.shape)}, which is outside of the sizes that the engine was built for; "
                    f"compile the model for them ({said()})"
                )
            context.set_tensor_address(edge.name, address(tensor))
        results, allocators = list[Tensor | None](), dict[str, Allocator]()
        for number, edge in enumerate(self.engine.outputs):
            if outputs is not None:
                result = outputs[number]
            elif (shape := self.shape_of(edge, inputs)) is None:  # the data decide
                allocators[edge.name] = made = Allocator.of(self.device)
                context.set_output_allocator(edge.name, made)
                results.append(None)
                continue
            else:
                result = torch.empty(shape, dtype=edge.dtype, device=self.device)
            context.set_tensor_address(edge.name, address(result))
            results.append(result)
        if not context.execute_async_v3(stream.cuda_stream):
            raise EngineMismatch(f"{title()} could not run the engine: {said()}")
        found = zip(self.engine.outputs, results, strict=True)
        return [allocators[e.name].tensor(e.dtype) if r is None else r for e, r in found]

    def shape_of(self, edge: Edge, inputs: Sequence[Tensor]) -> tuple[int, ...] | None:
        """An output's shape for inputs that the context knows; None where it depends on the data."""
        shape = tuple(self._context.get_tensor_shape(edge.name))
        if all(size >= 0 for size in shape):
            return shape
        env = {name: inputs[number].shape[axis] for name, (number, axis) in self._symbols.items()}
        if not all(isinstance(size, int) or set(sizes.parse(size).symbols) <= set(env) for size in edge.shape):
            return None
        return tuple(sizes.evaluate(size, env) for size in edge.shape)

    def _keep(self, given: Sequence[Tensor], stream: Any) -> Kept | None:
        """The next calls at these sizes; None where each has to be a plain one."""
        shapes = [self.shape_of(edge, given) for edge in self.engine.outputs]
        if None in shapes:
            return None
        inputs = [torch.empty_like(t) for t in given]
        outputs = [
            torch.empty(shape, dtype=edge.dtype, device=self.device)  # type: ignore[arg-type]
            for edge, shape in zip(self.engine.outputs, shapes, strict=True)
        ]

        def plain(stream: Any) -> None:
            with self._beside(stream) as side:
                self._enqueue(inputs, side, outputs)

        if is_rtx():
            return Kept(inputs, outputs, plain)
        graph = self._recorded(inputs, outputs, stream)
        return None if graph is None else Kept(inputs, outputs, lambda stream: graph.replay())

    def _recorded(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], stream: Any) -> torch.cuda.CUDAGraph | None:
        """A CUDA graph of a call on this memory; None for engines that cannot be recorded, as some with loops."""
        graph = torch.cuda.CUDAGraph()
        self._side.wait_stream(stream)
        try:
            with _recording, torch.cuda.stream(self._side):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._enqueue(inputs, self._side, outputs)
                finally:
                    graph.capture_end()
        except (EngineMismatch, RuntimeError) as error:  # what TensorRT says, or CUDA when the recording ends
            _LOG.info("this engine runs without a CUDA graph: %s", error)
            return None
        stream.wait_stream(self._side)
        return graph

    def inspect(self) -> str:
        """What TensorRT says of the engine's layers, as JSON."""
        inspector = self._loaded.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(trt().LayerInformationFormat.JSON))


@dataclass(frozen=True)
class Kept:
    """Calls at one set of sizes: memory that inputs are copied into and outputs out of, and what runs between, on a stream."""

    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    run: Callable[[Any], None]


def context_of(loaded: Any) -> Any:
    """What runs the engine. TensorRT-RTX is told to record CUDA graphs, which it does not do by itself."""
    strategies = getattr(trt(), "CudaGraphStrategy", None)
    if strategies is None or not is_rtx():
        return loaded.create_execution_context()
    settings = loaded.create_runtime_config()
    settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
    return loaded.create_execution_context(settings)


def check_capturable(context: Any, stream: Any) -> None:
    """Raises EngineMismatch where TensorRT-RTX, which is asked, would not have this call in a CUDA graph of the user's."""
    asked = getattr(context, "is_stream_capturable", None)
    if asked is not None and not asked(stream.cuda_stream):
        raise EngineMismatch(
            f"{title()} cannot run this engine while a CUDA graph is recorded; call the module outside of it, where its calls "
            "run as CUDA graphs of their own"
        )


class Allocator:
    """Memory for an output whose shape TensorRT learns as it runs."""

    memory: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def of(device: torch.device) -> Any:
        class Own(Allocator, trt().IOutputAllocator):  # type: ignore[misc]
            def __init__(self) -> None:
                trt().IOutputAllocator.__init__(self)
                self.memory, self.shape = torch.empty(1, dtype=torch.uint8, device=device), ()

            def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
                if size > self.memory.numel():
                    self.memory = torch.empty(size, dtype=torch.uint8, device=device)
                return self.memory.data_ptr()

            def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, stream: int) -> int:
                return self.reallocate_output(name, memory, size, alignment)

            def notify_shape(self, name: str, shape: Sequence[int]) -> None:
                self.shape = tuple(shape)

        return Own()

    def tensor(self, dtype: torch.dtype) -> Tensor:
        count = torch.Size(self.shape).numel()
        return self.memory[: count * dtype.itemsize].view(dtype).view(self.shape)


_NOWHERE: dict[torch.device, Tensor] = {}


def address(tensor: Tensor) -> int:
    """Where the tensor is; TensorRT wants some address of empty ones too."""
    if tensor.numel():
        return tensor.data_ptr()
    return _NOWHERE.setdefault(tensor.device, torch.empty(256, dtype=torch.uint8, device=tensor.device)).data_ptr()


def symbol_places(inputs: Sequence[Edge]) -> dict[str, tuple[int, int]]:
    """Where each dynamic size stands alone: (input, axis)."""
    places: dict[str, tuple[int, int]] = {}
    for number, edge in enumerate(inputs):
        for axis, size in enumerate(edge.shape):
            if isinstance(size, str) and size.isidentifier():
                places.setdefault(size, (number, axis))
    return places


def check_library(engine: Engine) -> None:
    """Raises EngineMismatch where the engine was built by the other kind of TensorRT."""
    here = "TensorRT-RTX" if is_rtx() else "TensorRT"
    if engine.library != here:
        raise EngineMismatch(
            f"the engine was built by {engine.library} {engine.version}, and this machine has {title()}; "
            f"install {engine.library}, or compile the model again"
        )


def refusal_of(words: str) -> str:
    """What to tell a user of an engine that TensorRT did not take."""
    if "compute capability" in words:
        major, minor = torch.cuda.get_device_capability()
        return (
            f"{title()} does not run on this GPU ({torch.cuda.get_device_name()}), which has compute capability {major}.{minor}: "
            f"{words}. Compile the model with backend='cuda', torchsmith's own engine, which runs on it"
        )
    return f"{title()} could not load the engine: {words}; compile the model again with this version"
