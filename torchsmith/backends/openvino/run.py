"""Running an OpenVINO engine on PyTorch's tensors.

Inputs are used where they are. Outputs are written where the caller will have them, unless they are so small that OpenVINO's
own copies cost less. Around the inference itself a call costs 8 µs for one input and one small output, 16 µs where the output
is bound: 3.5 to wrap a tensor, 2.3 to bind it, 1.7 to allocate an output (OpenVINO 2026.4.1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from torchsmith.backends.openvino.engine import first_line
from torchsmith.errors import InvalidInput, TorchsmithError

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "boolean": torch.bool,
}

# All outputs together; copying 64 KiB costs 5 µs, allocating and binding an output 8 to 11 µs.
_SMALL_BYTES = 64 << 10

Shapes = Sequence[Sequence[int]]

# As the executed model names them.
_MATRIX_WORK = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "MHA", "ScaledDotProductAttention")


class OpenVinoRunner:
    """A compiled model as a thread-safe callable from input tensors to new output tensors.

    compiled: from `engine.unpack`. output_shapes: the outputs' shapes by the inputs, for a model whose own are dynamic;
    without it such outputs are copied. Inputs are on the CPU, of the model's dtypes, of any strides; they are only read,
    and not after the call. Each call has a request of its own from a pool that grows as callers meet.
    """

    def __init__(self, compiled: ov.CompiledModel, output_shapes: Callable[[Sequence[Tensor]], Shapes] | None = None) -> None:
        self._compiled = compiled
        self._idle: list[ov.InferRequest] = []
        self._wrap_inputs = [_wrapper(_dtype(port)) for port in compiled.inputs]
        self._dtypes = [_dtype(port) for port in compiled.outputs]
        self._wrap_outputs = [_wrapper(dtype) for dtype in self._dtypes]
        self._shapes: Callable[[Sequence[Tensor]], Shapes] | None = output_shapes
        self._dynamic = any(port.partial_shape.is_dynamic for port in compiled.outputs)
        if not self._dynamic:
            static = [tuple(port.shape) for port in compiled.outputs]
            self._shapes = lambda inputs: static
        if sum(map(_most_bytes, compiled.outputs)) <= _SMALL_BYTES or _share_names(compiled):
            self._shapes = None
        # with one stream the caller's thread runs the engine; others have threads of their own, which a fork() leaves behind
        self._process = os.getpid() if int(compiled.get_property("NUM_STREAMS")) > 1 else None

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run once. Raises InvalidInput for inputs that do not fit, TorchsmithError where OpenVINO fails."""
        if len(inputs) != len(self._wrap_inputs) or (self._process is not None and self._process != os.getpid()):
            self._explain(inputs, None)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            held = self._bind(request, inputs)  # requests point into tensors, and do not keep them
            outputs = self._infer_copied(request) if self._shapes is None else self._infer_bound(request, self._shapes(inputs))
        except (RuntimeError, TypeError, AttributeError) as error:
            self._explain(inputs, error)
        del held
        # only a request that has done its work returns; after an interruption the pool makes another one
        self._idle.append(request)
        return outputs

    def infer_only(self, inputs: Sequence[Tensor]) -> Callable[[], None]:
        """The inference alone on these inputs, to be timed against a whole call."""
        request = self._compiled.create_infer_request()
        held = self._bind(request, inputs)

        def infer() -> None:
            assert held is not None
            request.infer(share_outputs=True)

        return infer

    def executed(self) -> list[tuple[str, str]]:
        """What does matrix work and in which precision, such as ("Convolution", "u8"), in order; OpenVINO's own word."""
        infos = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ordered_ops()]
        found = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in infos]
        return [(kind, precision) for kind, precision in found if kind in _MATRIX_WORK]

    def _bind(self, request: ov.InferRequest, inputs: Sequence[Tensor]) -> list[ov.Tensor]:
        held = [wrap(_plain(tensor)) for wrap, tensor in zip(self._wrap_inputs, inputs, strict=True)]
        for index, tensor in enumerate(held):
            request.set_input_tensor(index, tensor)
        return held

    def _infer_bound(self, request: ov.InferRequest, shapes: Shapes) -> list[Tensor]:
        outputs = [torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in zip(shapes, self._dtypes, strict=True)]
        held = [wrap(output) for wrap, output in zip(self._wrap_outputs, outputs, strict=True)]
        for index, tensor in enumerate(held):
            request.set_output_tensor(index, tensor)
        request.infer(share_outputs=True)
        if self._dynamic:  # OpenVINO fills a part of an output that is too large
            sizes = [request.get_output_tensor(index).get_size() for index in range(len(outputs))]
            assert sizes == [output.numel() for output in outputs], (sizes, shapes)
        return outputs

    def _infer_copied(self, request: ov.InferRequest) -> list[Tensor]:
        return [_tensor(array, dtype) for array, dtype in zip(request.infer().values(), self._dtypes, strict=True)]

    def _explain(self, inputs: Sequence[Tensor], error: Exception | None) -> NoReturn:
        """Raise what a failed call deserves."""
        ports = self._compiled.inputs
        if self._process not in (None, os.getpid()):
            raise TorchsmithError(
                "this engine was loaded before fork(), which leaves its threads behind; load it in the new process, "
                "start that with multiprocessing's 'spawn', or compile with performance_hint='latency'"
            )
        if len(inputs) != len(ports):
            raise InvalidInput(f"the engine takes {len(ports)} inputs, and got {len(inputs)}")
        for index, (port, tensor) in enumerate(zip(ports, inputs, strict=True)):
            takes = f"it takes a {_dtype(port)} tensor of shape {port.partial_shape} on the CPU"
            if not isinstance(tensor, Tensor) or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                what = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
                raise InvalidInput(f"the engine's input {index} is {what}; {takes}") from error
            if tensor.dtype != _dtype(port) or not port.partial_shape.compatible(ov.PartialShape(list(tensor.shape))):
                raise InvalidInput(
                    f"the engine's input {index} is {tensor.dtype} of shape {tuple(tensor.shape)}; {takes}"
                ) from error
        if not isinstance(error, RuntimeError):
            assert error is not None
            raise error
        raise TorchsmithError(
            f"OpenVINO failed while it ran an engine: {first_line(error)}; "
            "run the model in PyTorch to see whether its inputs are at fault"
        ) from error


def _dtype(port: ov.ConstOutput) -> torch.dtype:
    return DTYPES[port.element_type.get_type_name()]


def _share_names(compiled: ov.CompiledModel) -> bool:
    """Whether an output is an input, or another output: OpenVINO finds ports by name, and binds the first that has it."""
    names = [frozenset(port.get_names()) for port in (*compiled.inputs, *compiled.outputs)]
    return len(set(names)) < len(names)


def _most_bytes(port: ov.ConstOutput) -> float:
    """The most an output can take, infinite where a dimension is open."""
    if port.partial_shape.rank.is_dynamic:
        return math.inf
    sizes = [math.inf if size.max_length < 0 else size.max_length for size in port.partial_shape]
    return math.prod(sizes) * _dtype(port).itemsize


def _plain(tensor: Tensor) -> Tensor:
    """The same values in memory that numpy can name."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor.contiguous()


def _wrapper(dtype: torch.dtype) -> Callable[[Tensor], ov.Tensor]:
    """What makes an OpenVINO tensor on a contiguous tensor's own memory."""
    if dtype == torch.bfloat16:  # numpy has none
        return _bfloat16
    return _native


def _native(tensor: Tensor) -> ov.Tensor:
    return ov.Tensor(tensor.numpy(), True)


def _bfloat16(tensor: Tensor) -> ov.Tensor:
    if tensor.dtype != torch.bfloat16:
        raise TypeError(f"{tensor.dtype} where torch.bfloat16 is taken")
    if not tensor.numel():
        return ov.Tensor(ov.Type.bf16, list(tensor.shape))
    return ov.Tensor(tensor.view(torch.int16).view(-1).numpy(), tensor.shape, ov.Type.bf16)


def _tensor(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:  # OpenVINO calls its bits float16
        return torch.from_numpy(array.view(np.int16)).view(dtype)
    return torch.from_numpy(array)
