"""TensorRT engines at run time: `execute_async_v3` on the caller's stream, as a CUDA graph for each input shape."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchsmith import sizes
from torchsmith.backends.tensorrt.engine import Edge, Engine, parse
from torchsmith.backends.tensorrt.library import is_rtx, log, said, title, trt
from torchsmith.errors import EngineMismatch, InvalidInput, OutOfDeviceMemory

SHAPES_KEPT = 16  # graphs; the one that was not used for longest goes
Shapes = tuple[tuple[int, ...], ...]


class TensorRtRunner:
    """A loaded engine on the device that was current when it was loaded. Thread-safe: calls take turns."""

    def __init__(self, data: bytes) -> None:
        """Raises EngineMismatch where the engine is of another kind or version of TensorRT, or does not run on this GPU."""
        self.engine = parse(data)
        check_library(self.engine)
        log().forget()
        self._runtime = trt().Runtime(log())
        self._loaded = self._runtime.deserialize_cuda_engine(self.engine.plan.numpy().tobytes())
        if self._loaded is None:
            raise EngineMismatch(refusal_of(said()))
        self._context = self._loaded.create_execution_context()
        if self._context is None:
            raise OutOfDeviceMemory(
                f"the GPU has no memory for the engine's activations: {said()}; free other tensors, and try again"
            )
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._lock = threading.Lock()
        self._stream: int | None = None  # of the last call
        self._graphs: OrderedDict[Shapes, Recorded | None] = OrderedDict()
        self._symbols = symbol_places(self.engine.inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Raises InvalidInput for sizes outside of those that the engine was built for."""
        given = [t.contiguous() for t in inputs]
        with self._lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            self._follow(stream)
            if torch.cuda.is_current_stream_capturing():
                return self._enqueue(given, stream)
            key = tuple(tuple(t.shape) for t in given)
            if key in self._graphs:
                self._graphs.move_to_end(key)
                recorded = self._graphs[key]
                return self._enqueue(given, stream) if recorded is None else recorded(given)
            outputs = self._enqueue(given, stream)  # first plain: TensorRT prepares itself for the shape
            self._graphs[key] = self._record(given, stream)
            while len(self._graphs) > SHAPES_KEPT:
                self._graphs.popitem(last=False)
            return outputs

    def _follow(self, stream: Any) -> None:
        """Let this call's stream wait for the last one's: the context's memory is shared with the call before."""
        if self._stream is not None and self._stream != stream.cuda_stream:
            stream.wait_stream(torch.cuda.ExternalStream(self._stream, self.device))  # type: ignore[no-untyped-call]
        self._stream = stream.cuda_stream

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
        env = {name: inputs[number].shape[axis] for name, (number, axis) in self._symbols.items()}
        for number, edge in enumerate(self.engine.outputs):
            shape = self.shape_of(edge, env)
            if shape is None:  # the data decide
                allocators[edge.name] = made = Allocator.of(self.device)
                context.set_output_allocator(edge.name, made)
                results.append(None)
                continue
            result = outputs[number] if outputs is not None else torch.empty(shape, dtype=edge.dtype, device=self.device)
            context.set_tensor_address(edge.name, address(result))
            results.append(result)
        if not context.execute_async_v3(stream.cuda_stream):
            raise EngineMismatch(f"{title()} could not run the engine: {said()}")
        found = zip(self.engine.outputs, results, strict=True)
        return [allocators[e.name].tensor(e.dtype) if r is None else r for e, r in found]

    def shape_of(self, edge: Edge, env: Mapping[str, int]) -> tuple[int, ...] | None:
        """An output's shape; None where it depends on the data."""
        shape = tuple(self._context.get_tensor_shape(edge.name))
        if all(size >= 0 for size in shape):
            return shape
        if not all(isinstance(size, int) or set(sizes.parse(size).symbols) <= set(env) for size in edge.shape):
            return None
        return tuple(sizes.evaluate(size, env) for size in edge.shape)

    def _record(self, inputs: Sequence[Tensor], stream: Any) -> Recorded | None:
        """The call as a CUDA graph on memory of its own; None where the engine cannot be captured."""
        env = {name: inputs[number].shape[axis] for name, (number, axis) in self._symbols.items()}
        shapes = [self.shape_of(edge, env) for edge in self.engine.outputs]
        if None in shapes or not getattr(self._context, "is_stream_capturable", lambda stream: True)(stream.cuda_stream):
            return None
        own = [torch.empty_like(t) for t in inputs]
        outputs = [
            torch.empty(shape, dtype=edge.dtype, device=self.device)  # type: ignore[arg-type]
            for edge, shape in zip(self.engine.outputs, shapes, strict=True)
        ]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._enqueue(own, torch.cuda.current_stream(), outputs)
        return Recorded(graph, own, outputs)

    def inspect(self) -> str:
        """What TensorRT says of the engine's layers, as JSON."""
        return str(self._loaded.create_engine_inspector().get_engine_information(trt().LayerInformationFormat.JSON))


class Recorded:
    """A CUDA graph of one call; inputs are copied in, and outputs out."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.graph, self.inputs, self.outputs = graph, inputs, outputs

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return [output.clone() for output in self.outputs]


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
