"""From our IR to TensorRT's `INetworkDefinition`, one op at a time. The network is strongly typed: its types are ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from torchsmith.backends.emitters import Emitters
from torchsmith.backends.tensorrt.library import builder, log, said, trt
from torchsmith.errors import Unsupported
from torchsmith.ir.alone import alone
from torchsmith.ir.dim import Dim, Shape
from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.quantize import Dequantize

emitter = Emitters("torchsmith.backends.tensorrt.emitters")

TYPE_NAMES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int8: "INT8",
    torch.float8_e4m3fn: "FP8",
    torch.bool: "BOOL",
    torch.uint8: "INT32",  # inside: TensorRT takes uint8 at a network's edge alone
}
MAX_RANK = 8


def data_type(dtype: torch.dtype) -> Any:
    if dtype not in TYPE_NAMES:
        raise Unsupported(f"TensorRT does not compute in {dtype}")
    return getattr(trt().DataType, TYPE_NAMES[dtype])


def check_type(type: TensorType) -> None:
    """Raises Unsupported for a dtype or a number of dimensions that TensorRT does not have."""
    data_type(type.dtype)
    if type.rank > MAX_RANK:
        raise Unsupported(f"TensorRT's tensors have at most {MAX_RANK} dimensions, and here is {type}")


class Emission:
    """The network under construction. `node` is the one being emitted.

    What an emitter needs: `layer(...)` around every `network.add_*`, `rank`, `shaped`, `constant`, `number`, `sizes`, `cast`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.node: Node
        self.network = builder().create_network(_strongly_typed())
        self.tensors: dict[Value, Any] = {}
        self.emitters = emitter.all()
        self._kept: list[Tensor] = []  # TensorRT reads weights when it builds
        self._sizes: dict[Dim, Any] = {}
        self._where = "the edge"

    # ---- the whole --------------------------------------------------------------------------------------------------------

    def emit_all(self) -> Any:
        """The finished network; keep this object until it is built. Inputs and outputs are named as in `edge_names`."""
        inputs, outputs = edge_names(self.graph)
        for name, value in zip(inputs, self.graph.inputs, strict=True):
            self.tensors[value] = self._input(name, value)
        for value, tensor in self.graph.constants.items():
            self.tensors[value] = self.constant(tensor)
        for number, node in enumerate(self.graph.nodes):
            self.emit(number, node)
        self._where = "the edge"
        for name, value in zip(outputs, self.graph.outputs, strict=True):
            self._output(name, value)
        return self.network

    def emit(self, number: int, node: Node) -> None:
        """Emit one node, and check that TensorRT's types are ours. Raises Unsupported."""
        if type(node.op) not in self.emitters:
            raise Unsupported(f"the tensorrt backend has no emitter for {type(node.op).__name__}")
        self.node, self._where = node, f"{number} {type(node.op).__name__}" + (f" of {node.origin}" if node.origin else "")
        for value in (*node.inputs, *node.outputs):
            check_type(value.type)
        given = self._without_elements(node)
        if given is None:
            given = self.emitters[type(node.op)](self, node.op, *map(self._given, node.inputs))
        for value, tensor in zip(node.outputs, given if isinstance(given, tuple) else (given,), strict=True):
            found = tuple(tensor.shape)
            assert tensor.dtype == data_type(value.type.dtype), f"{node}: {value.type}, TensorRT gives {tensor.dtype}"
            assert len(found) == value.type.rank, f"{node}: {value.type}, TensorRT gives {found}"
            assert all(b < 0 or not isinstance(a, int) or a == b for a, b in zip(value.type.shape, found, strict=True)), (
                f"{node}: {value.type}, TensorRT gives {found}"
            )
            self.tensors[value] = tensor

    def _given(self, value: Value) -> Any:
        """An input of the node. TensorRT takes int8 constants for its dequantizing layer alone; others are cast to it."""
        known = self.graph.constants.get(value)
        weight = isinstance(self.node.op, Dequantize) and value is self.node.inputs[0]
        if known is None or known.dtype != torch.int8 or weight:
            return self.tensors[value]
        return self.to(self.constant(known.to(torch.int32)), torch.int8)

    def _without_elements(self, node: Node) -> tuple[Any, ...] | None:
        """Constants in place of a node whose outputs are known to have no elements; None for any other node."""
        if not all(0 in value.type.shape for value in node.outputs):
            return None
        if not all(value.type.is_static for value in node.outputs):
            raise Unsupported(f"{node.op} of no elements gives {node.outputs[0].type}, whose other sizes must be known")
        return tuple(
            self.to(self.constant(torch.zeros(value.type.shape, dtype=torch.int32)), value.type.dtype) for value in node.outputs
        )

    def _input(self, name: str, value: Value) -> Any:
        check_type(value.type)
        shape = tuple(size if isinstance(size, int) else -1 for size in value.type.shape)
        outside = trt().DataType.UINT8 if value.type.dtype == torch.uint8 else data_type(value.type.dtype)
        tensor = self.network.add_input(name, outside, shape)
        if tensor is None:
            raise Unsupported(f"TensorRT takes no input of {value.type}: {said()}")
        return self.to(tensor, torch.uint8) if value.type.dtype == torch.uint8 else tensor

    def _output(self, name: str, value: Value) -> None:
        """TensorRT names outputs one by one: one that is an input, or another output as well, is copied."""
        tensor = self.layer(self.network.add_identity(self.tensors[value]))
        if value.type.dtype == torch.uint8:
            tensor = self.layer(self.network.add_cast(tensor, trt().DataType.UINT8))
        tensor.name = name
        self.network.mark_output(tensor)

    # ---- what emitters are made of ------------------------------------------------------------------------------------------

    def layer(self, layer: Any, output: int = 0) -> Any:
        """An added layer's output; the layer gets the node's name. Raises Unsupported where TensorRT refused to add it."""
        if layer is None:
            raise Unsupported(f"TensorRT does not take {self.node.op}: {said()}")
        layer.name = f"{self._where} [{self.network.num_layers}]"
        found = layer.get_output(output)
        try:
            tuple(found.shape)
        except (RuntimeError, ValueError) as refusal:  # it takes layers and finds out when it is asked for their shape
            raise Unsupported(f"TensorRT does not take {self.node.op}: {said()}") from refusal
        return found

    def constant(self, tensor: Tensor) -> Any:
        """A constant with the tensor's shape and values. int16, float64 and complex ones raise Unsupported."""
        if tensor.dtype == torch.bool:  # which constant layers are documented not to take
            return self.to(self.constant(tensor.to(torch.int32)), torch.bool)
        type_ = data_type(tensor.dtype)
        given = tensor.detach().cpu()
        given = (given.to(torch.int32) if given.dtype == torch.uint8 else given).contiguous().clone()
        self._kept.append(given)
        weights = trt().Weights(type_, given.data_ptr(), given.numel())
        layer = self.network.add_constant(tuple(given.shape), weights)
        if layer is None:
            raise Unsupported(f"TensorRT takes no constant of {given.dtype} {tuple(given.shape)}: {said()}")
        return layer.get_output(0)

    def weights(self, tensor: Tensor | None) -> Any:
        """Weights for a layer that takes them when it is added; empty where there are none."""
        if tensor is None:
            return trt().Weights()
        given = tensor.detach().cpu().contiguous().clone()
        self._kept.append(given)
        return trt().Weights(data_type(given.dtype), given.data_ptr(), given.numel())

    def known(self, number: int) -> Tensor | None:
        """The node's input of that number where it is a constant of the graph."""
        return self.graph.constants.get(self.node.inputs[number])

    def number(self, value: float | bool, dtype: torch.dtype, rank: int = 0) -> Any:
        """A constant of one element with that many dimensions."""
        return self.constant(torch.full((1,) * rank, value, dtype=dtype))

    def ints(self, values: Sequence[int]) -> Any:
        """A constant vector of int64."""
        return self.constant(torch.tensor(list(values), dtype=torch.int64))

    def to(self, tensor: Any, dtype: torch.dtype) -> Any:
        """The tensor cast, where it is not of that dtype."""
        wanted = data_type(dtype)
        return tensor if tensor.dtype == wanted else self.layer(self.network.add_cast(tensor, wanted))

    def binary(self, operation: str, a: Any, b: Any) -> Any:
        """An `ElementWiseOperation` by name. Both of one rank after the smaller one gets leading dimensions of size 1."""
        rank = max(len(a.shape), len(b.shape))
        kind = getattr(trt().ElementWiseOperation, operation)
        return self.layer(self.network.add_elementwise(self.rank(a, rank), self.rank(b, rank), kind))

    def unary(self, operation: str, x: Any) -> Any:
        """A `UnaryOperation` by name."""
        return self.layer(self.network.add_unary(x, getattr(trt().UnaryOperation, operation)))

    def activation(self, kind: str, x: Any, alpha: float | None = None, beta: float | None = None) -> Any:
        """An `ActivationType` by name."""
        layer = self.network.add_activation(x, getattr(trt().ActivationType, kind))
        if layer is not None and alpha is not None:
            layer.alpha = alpha
        if layer is not None and beta is not None:
            layer.beta = beta
        return self.layer(layer)

    def rank(self, x: Any, rank: int) -> Any:
        """x with leading dimensions of size 1, up to that rank."""
        have = len(x.shape)
        if have == rank:
            return x
        shape = tuple(x.shape)
        if all(n >= 0 for n in shape) or sum(n < 0 for n in shape) == 1:
            return self.reshape_to(x, (1,) * (rank - have) + shape)
        ones = self.ints([1] * (rank - have))
        sizes = self.joined([ones, self.layer(self.network.add_shape(x))])
        return self._shuffle(x, sizes)

    def reshape_to(self, x: Any, shape: Sequence[int]) -> Any:
        """x in a shape of numbers, one of which may be -1."""
        layer = self.network.add_shuffle(x)
        layer.zero_is_placeholder = False
        layer.reshape_dims = tuple(shape)
        return self.layer(layer)

    def shaped(self, x: Any, shape: Shape) -> Any:
        """x in another shape, whose sizes may be symbolic."""
        if sum(not isinstance(n, int) for n in shape) <= 1 and 0 not in shape:
            return self.reshape_to(x, [n if isinstance(n, int) else -1 for n in shape])
        return self._shuffle(x, self.sizes(shape))

    def _shuffle(self, x: Any, sizes: Any) -> Any:
        layer = self.network.add_shuffle(x)
        layer.zero_is_placeholder = False
        layer.set_input(1, sizes)
        return self.layer(layer)

    def permuted(self, x: Any, order: Sequence[int]) -> Any:
        layer = self.network.add_shuffle(x)
        layer.first_transpose = tuple(order)
        return self.layer(layer)

    def joined(self, parts: Sequence[Any], axis: int = 0) -> Any:
        layer = self.network.add_concatenation(list(parts))
        if layer is not None:
            layer.axis = axis
        return self.layer(layer)

    def sliced(
        self, x: Any, start: Shape, size: Shape, stride: Sequence[int] = (), mode: str = "STRICT_BOUNDS", fill: Any = None
    ) -> Any:
        """x from `start`, as many elements as `size` says, in steps of `stride` (1 where it is left out), by `SampleMode`.

        Starts and sizes may be symbolic, and starts negative. fill: a tensor of no dimensions, for the mode "FILL".
        """
        rank = len(size)
        known = [all(isinstance(n, (int, sympy.Integer)) for n in some) for some in (start, size)]
        first, count = (tuple(int(n) for n in some) if k else (0,) * rank for some, k in zip((start, size), known, strict=True))
        computed = {i: self.sizes(some) for i, (some, k) in enumerate(zip((start, size), known, strict=True), 1) if not k}
        layer = self.network.add_slice(x, first, count, tuple(stride) or (1,) * rank)
        if layer is not None:
            layer.mode = getattr(trt().SampleMode, mode)
            for number, tensor in computed.items():
                layer.set_input(number, tensor)
            if fill is not None:
                layer.set_input(4, fill)
        return self.layer(layer)

    # ---- sizes --------------------------------------------------------------------------------------------------------------

    def sizes(self, shape: Sequence[Dim]) -> Any:
        """A shape as a vector of int64; symbolic sizes are computed from the inputs' shapes as the engine runs."""
        if all(isinstance(size, (int, sympy.Integer)) for size in shape):
            return self.ints([int(size) for size in shape])
        return self.joined([self.size(size) for size in shape])

    def size(self, size: Dim) -> Any:
        """A size as a vector of one int64."""
        if size not in self._sizes:
            self._sizes[size] = self._compute(size)
        return self._sizes[size]

    def _compute(self, size: Dim) -> Any:
        if isinstance(size, (int, sympy.Integer)):
            return self.ints([int(size)])
        if size.is_Symbol:
            value, axis = next((v, axis) for v in self.graph.inputs for axis, s in enumerate(v.type.shape) if s == size)
            shape = self.layer(self.network.add_shape(self.tensors[value]))
            return self.layer(self.network.add_slice(shape, (axis,), (1,), (1,)))
        if type(size).__name__ in ("Mod", "PythonMod"):
            a, b = (self.size(argument) for argument in size.args)
            return self.binary("SUB", a, self.binary("PROD", b, self.binary("FLOOR_DIV", a, b)))
        if type(size).__name__ == "Pow":
            base, exponent = size.args
            if not (isinstance(exponent, sympy.Integer) and int(exponent) > 0):
                raise Unsupported(f"the tensorrt backend cannot compute the size {size}")
            result = self.size(base)
            for _ in range(int(exponent) - 1):
                result = self.binary("PROD", result, self.size(base))
            return result
        combine = SIZE_OPERATIONS.get(type(size).__name__)
        if combine is None:
            raise Unsupported(f"the tensorrt backend cannot compute the size {size}")
        result = self.size(size.args[0])
        for argument in size.args[1:]:
            result = self.binary(combine, result, self.size(argument))
        return result


SIZE_OPERATIONS = {"Add": "SUM", "Mul": "PROD", "Max": "MAX", "Min": "MIN", "FloorDiv": "FLOOR_DIV", "CleanDiv": "FLOOR_DIV"}


def edge_names(graph: Graph) -> tuple[list[str], list[str]]:
    """What an engine's inputs and outputs are called, in order: each name once."""
    return [f"input{i}" for i in range(len(graph.inputs))], [f"output{i}" for i in range(len(graph.outputs))]


def _strongly_typed() -> int:
    """Network flags. TensorRT 11 and later know no other networks."""
    flags = getattr(trt(), "NetworkDefinitionCreationFlag", None)
    flag = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def refuses(node: Node) -> str | None:
    """Why TensorRT cannot take the node, or None: asked by emitting it alone."""
    log().forget()
    try:
        Emission(alone(node)).emit_all()
    except Unsupported as refusal:
        return str(refusal)
    return None
