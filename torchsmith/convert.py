"""From ATen to the IR: run each node's converter over values."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from torchsmith.capture.source import source_line
from torchsmith.errors import Unsupported
from torchsmith.ir.builder import Builder, constant
from torchsmith.ir.dim import dim_of, symbols_in
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.types import TensorType, type_of
from torchsmith.ops.registry import load_all

Ranges = dict[str, tuple[int, "int | None"]]
# Sizes that sympy calls infinite are written as no limit.
_UNLIMITED = 2**62


def parameters_of(program: ExportedProgram) -> dict[str, Tensor]:
    """The tensors behind the program's lifted placeholders (parameters, buffers, constants), by placeholder name."""
    from torch.export.graph_signature import InputKind

    found: dict[str, Tensor] = {}
    mutated = set(program.graph_signature.buffers_to_mutate.values())
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR) and spec.target not in mutated:
            tensor = program.state_dict.get(spec.target)
            found[spec.arg.name] = program.constants[spec.target] if tensor is None else tensor
    return found


def ranges_of(program: ExportedProgram) -> Ranges:
    """For every symbol of the program's shapes, the least and the greatest size."""
    found: Ranges = {}
    for sym, limits in program.range_constraints.items():
        low, high = limits.lower, limits.upper
        found[str(sym)] = (max(int(low), 0), int(high) if high.is_Integer and int(high) < _UNLIMITED else None)
    return found


def typical_of(program: ExportedProgram) -> dict[str, int]:
    """For every symbol that stands alone in an input's shape, the size that was traced: the user's opt_shape, where that is over 1.

    Sizes 0 and 1 are never traced, as export takes them for fixed.
    """
    found: dict[str, int] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.has_hint():
                found[str(size.node.expr)] = int(size.node.hint)
    return found


def types_of(node: fx.Node) -> tuple[TensorType, ...]:
    """The types of what a node gives. Raises Unsupported for what is no tensor."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    for v in values:
        if not isinstance(v, Tensor):
            raise Unsupported(f"{node.target} gives {type(v).__name__}, and engines give tensors")
        if v.layout is not torch.strided:
            raise Unsupported(f"{node.target} gives a {v.layout} tensor")
    return tuple(type_of(v) for v in values)


def origin_of(node: fx.Node) -> str:
    line = source_line(node)
    return f"{node.target}" + (f" at {line}" if line else "")


def is_named(node: fx.Node, names: Collection[str]) -> bool:
    """Whether the user named the node's op, as in `aten.add.Tensor`, `aten.add`, `aten::add` or `torch.ops.aten.add`."""
    full = str(node.target)
    short = full.rpartition(".")[0]
    forms = {full, short, full.replace(".", "::", 1), short.replace(".", "::", 1), f"torch.ops.{full}", f"torch.ops.{short}"}
    return not forms.isdisjoint(names)


class Converter:
    """Converts nodes of one program into one graph, one after another."""

    def __init__(self, program: ExportedProgram, parameters: dict[str, Tensor] | None = None) -> None:
        self.parameters = parameters_of(program) if parameters is None else parameters
        self.ranges = ranges_of(program)
        self.converters = load_all()
        self.builder = Builder(self.ranges)
        self.values: dict[fx.Node, Any] = {}

    def input(self, node: fx.Node) -> Value:
        (type,) = types_of(node)
        value = self.values[node] = self.builder.input(type, node.name)
        return value

    def node(self, node: fx.Node) -> Any:
        """Convert one node, whose inputs have values. Raises Unsupported."""
        if node.target is operator.getitem:
            self.values[node] = self._argument(node.args[0])[node.args[1]]
            return self.values[node]
        if node.target not in self.converters:
            raise Unsupported("no converter")
        assert isinstance(node.target, OpOverload)
        expected = types_of(node)
        with self.builder, self.builder.at(origin_of(node), expected, node.meta.get("precision")):
            args = [self._argument(a) for a in node.args]
            kwargs = {name: self._argument(a) for name, a in node.kwargs.items()}
            given = self.converters[node.target](*args, **kwargs)
        outputs = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        assert len(outputs) == len(expected) and all(v.type.matches(t) for v, t in zip(outputs, expected)), (
            f"the converter of {node.target} gave {outputs}, and torch.export says {', '.join(map(str, expected))}"
        )
        self.values[node] = given
        return given

    def _argument(self, argument: Any) -> Any:
        """An ATen argument as converters see it: values for tensors, sizes for SymInts, the rest as it is."""
        if isinstance(argument, (list, tuple)):
            return [self._argument(a) for a in argument]
        if not isinstance(argument, fx.Node):
            return argument
        if argument in self.values:
            return self.values[argument]
        if argument.name in self.parameters:
            self.values[argument] = constant(self.parameters[argument.name], argument.name)
            return self.values[argument]
        value = argument.meta.get("val")
        if isinstance(value, (torch.SymInt, int)):
            return dim_of(value)
        raise Unsupported(f"argument {argument.name} is {type(value).__name__}; engines take tensors and sizes")


def convert(program: ExportedProgram, inputs: Sequence[fx.Node], nodes: Iterable[fx.Node], outputs: Sequence[fx.Node]) -> Graph:
    """One segment as a graph: `nodes` between `inputs` and `outputs`, with the program's parameters as constants.

    Raises Unsupported with the reason of the first node that cannot be converted.
    """
    converter = Converter(program)
    for node in inputs:
        converter.input(node)
    for node in nodes:
        converter.node(node)
    with converter.builder:
        results = [converter._argument(node) for node in outputs]
    graph = converter.builder.finish(results)
    used = set().union(*(symbols_in(v.type.shape) for v in graph.values()), *(n.op.symbols() for n in graph.nodes), set())
    ranges = {name: limits for name, limits in graph.ranges.items() if name in used}
    return Graph(graph.inputs, graph.nodes, graph.outputs, graph.constants, ranges)


def probe(converter: Converter, node: fx.Node) -> Graph:
    """One node as a graph of its own, to ask whether it can be converted and built. Raises Unsupported."""
    single = Converter.__new__(Converter)
    single.parameters, single.ranges, single.converters = converter.parameters, converter.ranges, converter.converters
    single.builder, single.values = Builder(converter.ranges), {}
    for argument in node.all_input_nodes:
        if argument.name not in single.parameters and isinstance(argument.meta.get("val"), Tensor):
            single.input(argument)
    given = single.node(node)
    if not isinstance(given, (tuple, list)):
        return single.builder.finish([given])
    # what nobody takes, such as the indices of a max pooling, need not be built
    taken = {user.args[1] for user in node.users if user.target is operator.getitem and user.users}
    return single.builder.finish([value for index, value in enumerate(given) if index in taken])
