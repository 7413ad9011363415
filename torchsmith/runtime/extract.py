"""Read a plan off an exported program."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram

from torchsmith import sizes as shapes
from torchsmith.errors import CaptureError
from torchsmith.runtime.control import HIGHER_ORDER, SIZES
from torchsmith.runtime.plan import (
    OPAQUE,
    REQUIRED,
    Block,
    Call,
    ConstantInput,
    EngineCall,
    Input,
    Parameter,
    Plan,
    Ref,
    SizeInput,
    TensorInput,
    Write,
)
from torchsmith.runtime.spec import EngineSpec
from torchsmith.runtime.structure import Structure
from torchsmith.sizes import Dim

ENGINE = "torchsmith::execute_engine"
_CHECKED = "aten::_assert_tensor_metadata"  # dtypes and devices follow from the inputs', which every call checks
_SIZE_FUNCTIONS = set(SIZES.values())


def plan_of(program: ExportedProgram, signature: inspect.Signature | None = None) -> Plan:
    """The plan of a program whose engines are calls of `torchsmith::execute_engine`.

    signature: the original model's; without it, calls are bound by the names that the program keeps.
    Raises CaptureError for what no module can be made of, such as custom objects among the inputs.
    """
    return _Reader(program).plan(signature)


class _Reader:
    """Numbers a program's values: the user's leaves first, then the bound tensors, then what the steps give."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.numbers: dict[fx.Node, int] = {}
        self.bound: dict[fx.Node, str] = {}  # lifted tensors by their placeholder
        self.symbols: dict[str, tuple[int, int | None]] = {}
        self.count = 0

    def plan(self, signature: inspect.Signature | None) -> Plan:
        program = self.program
        nested_inputs, nested_output = Structure.of(program.call_spec.in_spec), Structure.of(program.call_spec.out_spec)
        parameters, names = _parameters(program, nested_inputs, signature)
        inputs = self._inputs([path for name, child in names for path in child.paths(name)])
        tensors = {name: self._number(node) for node, name in self.bound.items()}
        body = self._block(program.graph_module, inputs=tuple(range(len(inputs))))
        writes, outputs = self._outputs([input_.name for input_ in inputs], body.result)
        used = {s for input_ in inputs for dim in _dims(input_) for s in shapes.parse(dim).symbols}
        return Plan(
            inputs=tuple(inputs),
            tensors={name: number for name, number in tensors.items() if number in _uses(body) or name in {w.into for w in writes}},
            body=Block(body.inputs, body.steps, None),
            writes=writes,
            outputs=outputs,
            nested_inputs=nested_inputs,
            nested_output=nested_output,
            symbols={name: self.symbols.get(name, (0, None)) for name in sorted(used)},
            relations=_relations(program, used),
            parameters=parameters,
        )

    def _number(self, node: fx.Node) -> int:
        if node not in self.numbers:
            self.numbers[node] = self.count
            self.count += 1
        return self.numbers[node]

    def _inputs(self, names: list[str]) -> list[Input]:
        for symbol, bounds in self.program.range_constraints.items():
            if symbol.is_Symbol:
                low, high = bounds.lower, bounds.upper
                self.symbols[str(symbol)] = max(int(low), 0) if low.is_Integer else 0, int(high) if high.is_Integer else None
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        users, inputs = iter(names), list[Input]()
        for node, spec in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            kind = spec.kind.name
            if kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
                self.bound[node] = str(spec.target)
            elif kind == "USER_INPUT":
                self._number(node)
                inputs.append(self._input(next(users), node, spec.arg))
            else:
                raise CaptureError(
                    f"the program has the input {spec.arg.name!r} of kind {kind}, which no compiled module can pass on"
                )
        return inputs

    def _input(self, name: str, node: fx.Node, arg: Any) -> Input:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return TensorInput(name, tuple(map(self._dim, value.shape)), value.dtype, value.device)
        if isinstance(value, torch.SymInt):
            return SizeInput(name, self._dim(value))
        constant = getattr(arg, "value", value)
        if constant is not None and not isinstance(constant, (bool, int, float, str)):
            raise CaptureError(
                f"the input {name!r} is a {type(constant).__name__}; a compiled module takes tensors and plain constants"
            )
        return ConstantInput(name, constant)

    def _dim(self, size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        expr = size.node.expr
        if expr.is_Integer:
            return int(expr)
        try:
            return shapes.parse(str(expr)).text
        except ValueError:  # an expression that sizes do not have is left unchecked
            return f"any{len(self.numbers)}_{len(self.symbols)}"

    def _block(self, module: fx.GraphModule, inputs: tuple[int, ...]) -> Block:
        steps: list[Call | EngineCall] = []
        result: Any = None
        for node in module.graph.nodes:
            if node.op == "call_function":
                if (step := self._step(module, node)) is not None:
                    steps.append(step)
            elif node.op == "output":
                result = self._value(module, node.args[0])
            elif node.op not in ("placeholder", "get_attr"):
                raise CaptureError(f"the program has {node.format_node()}, and a compiled module runs functions only")
        return Block(inputs, tuple(steps), result)

    def _step(self, module: fx.GraphModule, node: fx.Node) -> Call | EngineCall | None:
        target: Any = node.target
        if isinstance(target, OpOverload):
            if target._schema.name == _CHECKED:
                return None
            if target._schema.name == ENGINE:
                return self._engine(node)
        elif isinstance(target, HigherOrderOperator):
            name = str(target)
            if name not in HIGHER_ORDER:
                raise CaptureError(f"the program has the higher-order op {name}, which a compiled module cannot run")
            target = HIGHER_ORDER[name]
        elif target not in _SIZE_FUNCTIONS:
            raise CaptureError(f"the program calls {target}, which a compiled module cannot run")
        args = tuple(self._value(module, arg) for arg in node.args)
        kwargs = {name: self._value(module, arg) for name, arg in node.kwargs.items()}
        return Call(target, args, kwargs, self._number(node))

    def _engine(self, node: fx.Node) -> EngineCall:
        inputs, constant, text = node.args
        assert isinstance(inputs, (list, tuple)) and isinstance(constant, fx.Node) and isinstance(text, str), node.format_node()
        spec = EngineSpec.from_json(text)
        devices = [source.meta["val"].device for source in inputs if isinstance(source, fx.Node)]
        device = devices[0] if devices else torch.device(spec.device)
        return EngineCall(spec, self.bound[constant], tuple(self._value(None, i) for i in inputs), self._number(node), device)

    def _value(self, module: fx.GraphModule | None, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            if arg.op == "get_attr" and module is not None:
                return self._subgraph(module, arg)
            return Ref(self._number(arg))
        if isinstance(arg, (list, tuple)):
            values = [self._value(module, item) for item in arg]
            return values if isinstance(arg, list) else tuple(values)
        if isinstance(arg, dict):
            return {key: self._value(module, item) for key, item in arg.items()}
        return arg

    def _subgraph(self, module: fx.GraphModule, node: fx.Node) -> Block:
        inner = operator.attrgetter(str(node.target))(module)
        if not isinstance(inner, fx.GraphModule):
            raise CaptureError(f"the program reads {node.target!r}, a {type(inner).__name__} that is not among its inputs")
        return self._block(inner, tuple(self._number(n) for n in inner.graph.nodes if n.op == "placeholder"))

    def _outputs(self, names: list[str], result: Any) -> tuple[tuple[Write, ...], tuple[Any, ...]]:
        specs = self.program.graph_signature.output_specs
        mine = (item for item in self.numbers.items() if item[0].graph is self.program.graph and item[0].op == "placeholder")
        by_placeholder = {node.name: position for node, position in mine}
        writes, outputs = list[Write](), list[Any]()
        for value, spec in zip(result, specs, strict=True):
            kind = spec.kind.name
            if kind == "USER_OUTPUT":
                outputs.append(value)
            elif kind in ("BUFFER_MUTATION", "PARAMETER_MUTATION"):
                writes.append(Write(value, str(spec.target)))
            elif kind == "USER_INPUT_MUTATION":
                writes.append(Write(value, by_placeholder[str(spec.target)]))
            else:
                raise CaptureError(f"the program has an output of kind {kind}; a compiled module is for inference")
        return tuple(writes), tuple(outputs)


def _dims(input_: Input) -> list[str]:
    sizes = input_.shape if isinstance(input_, TensorInput) else (input_.size,) if isinstance(input_, SizeInput) else ()
    return [size for size in sizes if isinstance(size, str)]


def _uses(block: Block) -> set[int]:
    """The numbers of all values that a block reads, those of its inner blocks included."""
    found: set[int] = set()

    def walk(value: Any) -> None:
        if isinstance(value, Ref):
            found.add(value.index)
        elif isinstance(value, Block):
            found.update(_uses(value))
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        elif isinstance(value, dict):
            walk(list(value.values()))

    for step in block.steps:
        walk(step.inputs if isinstance(step, EngineCall) else [step.args, step.kwargs])
    walk(block.result)
    return found


def _relations(program: ExportedProgram, used: set[str]) -> tuple[tuple[str, str], ...]:
    """Equalities between sizes that the trace relied on, such as one that must be divisible.

    Its other guards compare the example's own sizes and hold no promise for the program.
    """
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    mode = next((value.fake_mode for value in values if hasattr(value, "fake_mode")), None)
    found: dict[tuple[str, str], None] = {}
    for guard in mode.shape_env.guards if mode is not None and mode.shape_env is not None else ():
        if type(guard.expr).__name__ != "Equality":
            continue
        left, right = (str(side) for side in guard.expr.args)
        try:
            symbols = {*shapes.parse(left).symbols, *shapes.parse(right).symbols}
        except ValueError:
            continue
        if symbols and symbols <= used:
            found[left, right] = None
    return tuple(found)


def _parameters(
    program: ExportedProgram, nested: Structure, signature: inspect.Signature | None
) -> tuple[tuple[Parameter, ...], list[tuple[str, Structure]]]:
    """The original's parameters, and the compiled arguments by name: positional ones, then keywords."""
    args, kwargs = nested.children
    root = program.module_call_graph[0].signature
    known = list(root.forward_arg_names or ()) if root is not None else []
    positional = [known[i] if i < len(known) else f"args_{i}" for i in range(len(args.children))]
    names = [*zip(positional, args.children, strict=True), *zip(kwargs.context or (), kwargs.children, strict=True)]
    if signature is None:
        return _parameters_by_name(program, names), names
    return tuple(Parameter(p.name, p.kind.name, _default(p)) for p in signature.parameters.values()), names


def _parameters_by_name(program: ExportedProgram, names: list[tuple[str, Structure]]) -> tuple[Parameter, ...]:
    """Parameters as the compiled arguments show them; a constant may be left out, unless one that may not comes after it."""
    constants, leaf, parameters = _constants(program), 0, list[Parameter]()
    for name, nested in names:
        default = constants.get(leaf, REQUIRED) if nested.type is None else REQUIRED
        parameters.append(Parameter(str(name), inspect.Parameter.POSITIONAL_OR_KEYWORD.name, default))
        leaf += nested.leaves
    required = max((i for i, p in enumerate(parameters) if p.default is REQUIRED), default=-1)
    return tuple(Parameter(p.name, p.kind, REQUIRED) if i < required else p for i, p in enumerate(parameters))


def _constants(program: ExportedProgram) -> dict[int, Any]:
    """Values of the leaves that were compiled in, by position: who leaves them out means them."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    return {i: spec.arg.value for i, spec in enumerate(specs) if hasattr(spec.arg, "value")}


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is inspect.Parameter.empty:
        return REQUIRED
    plain = parameter.default is None or isinstance(parameter.default, (bool, int, float, str))
    return parameter.default if plain else OPAQUE


def tensors_of(program: ExportedProgram) -> Mapping[str, Tensor]:
    """Every tensor that the program's signature may name."""
    return {**program.state_dict, **{name: value for name, value in program.constants.items() if isinstance(value, Tensor)}}
