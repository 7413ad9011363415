"""From our IR to an `openvino.Model`, one op at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import openvino as ov
import openvino.opset15 as ops
import sympy
import torch
from torch import Tensor

from torchsmith.backends.emitters import Emitters
from torchsmith.errors import Unsupported
from torchsmith.ir.alone import alone
from torchsmith.ir.dim import Dim, Shape
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType

emitter = Emitters("torchsmith.backends.openvino.emitters")

# OpenVINO's CPU engine has no 64-bit floats (it computes them in 32 bits without a word), so they are refused here.
ELEMENT_TYPES = {
    torch.float32: ov.Type.f32,
    torch.float16: ov.Type.f16,
    torch.bfloat16: ov.Type.bf16,
    torch.int64: ov.Type.i64,
    torch.int32: ov.Type.i32,
    torch.int16: ov.Type.i16,
    torch.int8: ov.Type.i8,
    torch.uint8: ov.Type.u8,
    torch.bool: ov.Type.boolean,
}


def element_type(dtype: torch.dtype) -> ov.Type:
    if dtype not in ELEMENT_TYPES:
        raise Unsupported(f"OpenVINO's CPU engine does not compute in {dtype}")
    return ELEMENT_TYPES[dtype]


class Emission:
    """The OpenVINO model under construction. `node` is the one being emitted."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node: Node
        self.outputs: dict[Value, ov.Output] = {}
        self.producers: dict[Value, Node] = {}
        self._sizes: dict[Dim, ov.Output] = {}
        self.emitters = emitter.all()

    def model(self) -> ov.Model:
        parameters = [self.parameter(value) for value in self.graph.inputs]
        for value, tensor in self.graph.constants.items():
            self.outputs[value] = self.constant(tensor)
        for node in self.graph.nodes:
            self.emit(node)
        results = [ops.result(self.outputs[value]) for value in self.graph.outputs]
        return ov.Model(results, parameters, "torchsmith")

    def emit(self, node: Node) -> None:
        """Emit one node, and check that OpenVINO's types are ours. Raises Unsupported."""
        if type(node.op) not in self.emitters:
            raise Unsupported(f"the openvino backend has no emitter for {type(node.op).__name__}")
        self.node = node
        for value in (*node.inputs, *node.outputs):
            element_type(value.type.dtype)
        given = self.emitters[type(node.op)](self, node.op, *(self.outputs[v] for v in node.inputs))
        for value, output in zip(node.outputs, given if isinstance(given, tuple) else (given,), strict=True):
            output = as_output(output)
            assert output.get_element_type() == element_type(value.type.dtype), f"{node}: {value.type}, OpenVINO gives {output}"
            assert output.get_partial_shape().compatible(self.partial_shape(value.type)), (
                f"{node}: {value.type}, OpenVINO gives {output}"
            )
            self.outputs[value], self.producers[value] = output, node

    def parameter(self, value: Value) -> ov.Node:
        parameter = ops.parameter(self.partial_shape(value.type), element_type(value.type.dtype), name=value.name)
        self.outputs[value] = parameter.output(0)
        return parameter

    def partial_shape(self, type: TensorType) -> ov.PartialShape:
        return ov.PartialShape([self._dimension(size) for size in type.shape])

    def _dimension(self, size: Dim) -> ov.Dimension:
        if isinstance(size, int):
            return ov.Dimension(size)
        if size.is_Symbol:
            low, high = self.graph.ranges[str(size)]
            return ov.Dimension(low, -1 if high is None else high)
        return ov.Dimension(-1)

    def constant(self, tensor: Tensor) -> ov.Output:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            shared = ov.Tensor(tensor.view(torch.int16).numpy(), tensor.shape, ov.Type.bf16)
            return ops.constant(shared).output(0)
        element_type(tensor.dtype)
        return ops.constant(tensor.numpy()).output(0)

    def ints(self, values: Sequence[int]) -> ov.Output:
        """A constant vector of int64."""
        return ops.constant(np.array(values, dtype=np.int64)).output(0)

    def number(self, value: float, like: ov.Output) -> ov.Output:
        """A constant of no dimensions with the element type of `like`."""
        return ops.constant(value, like.get_element_type()).output(0)

    def sizes(self, shape: Shape) -> ov.Output:
        """A shape as a vector of int64; symbolic sizes are computed from the inputs' shapes as the engine runs."""
        if all(isinstance(size, int) for size in shape):
            return self.ints(shape)
        parts = [ops.unsqueeze(self.size(size), self.ints([0])) for size in shape]
        return ops.concat(parts, 0).output(0)

    def size(self, size: Dim) -> ov.Output:
        """A size as an int64 of no dimensions."""
        if size not in self._sizes:
            self._sizes[size] = self._compute(size)
        return self._sizes[size]

    def _compute(self, size: Dim) -> ov.Output:
        if isinstance(size, (int, sympy.Integer)):
            return ops.constant(np.int64(int(size))).output(0)
        if size.is_Symbol:
            value, axis = next((v, axis) for v in self.graph.inputs for axis, s in enumerate(v.type.shape) if s == size)
            shape = ops.shape_of(self.outputs[value], "i64")
            return ops.gather(shape, ops.constant(np.int64(axis)), ops.constant(np.int64(0))).output(0)
        arguments = [self.size(argument) for argument in size.args]
        combine = _SIZE_FUNCTIONS.get(type(size).__name__)
        if combine is None:
            raise Unsupported(f"the openvino backend cannot compute the size {size}")
        result = arguments[0]
        for argument in arguments[1:]:
            result = combine(result, argument).output(0)
        return result


_SIZE_FUNCTIONS: dict[str, Callable[[ov.Output, ov.Output], ov.Node]] = {
    "Add": ops.add,
    "Mul": ops.multiply,
    "Pow": ops.power,
    "Max": ops.maximum,
    "Min": ops.minimum,
    # sizes are not negative, so that division towards zero is the floor
    "FloorDiv": ops.divide,
    "CleanDiv": ops.divide,
    "Mod": ops.floor_mod,
    "PythonMod": ops.floor_mod,
}


def as_output(given: ov.Node | ov.Output) -> ov.Output:
    return given.output(0) if isinstance(given, ov.Node) else given


def emit(graph: Graph) -> ov.Model:
    """The whole graph as an OpenVINO model. Raises Unsupported."""
    return Emission(graph).model()


def refuses(node: Node, ranges: dict[str, tuple[int, int | None]]) -> str | None:
    """Why OpenVINO cannot take the node, or None: asked by emitting it alone."""
    try:
        emit(alone(node, ranges))
    except Unsupported as refusal:
        return str(refusal)
    return None
