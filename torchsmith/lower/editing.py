"""What the passes share: a private copy of a program, new nodes, lifted constants."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx.experimental.symbolic_shapes import statically_known_true

from torchsmith.config import LowerConfig
from torchsmith.convert import is_named

# Where a node comes from; what is made of it says the same.
_PROVENANCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass(frozen=True)
class Lowering:
    """What every pass is told. kept: names of the ops that the user keeps in PyTorch, which are neither taken apart nor folded."""

    config: LowerConfig = field(default_factory=LowerConfig)
    kept: frozenset[str] = frozenset()

    def keeps(self, node: fx.Node) -> bool:
        """Whether the user keeps the node's op in PyTorch."""
        return is_named(node, self.kept)


def copied(program: ExportedProgram) -> ExportedProgram:
    """A program whose graph, signature and tables can be changed; the tensors in it are the same."""
    signature, graph = program.graph_signature, copy.deepcopy(program.graph)
    for old, new in zip(program.graph.nodes, graph.nodes, strict=True):
        new.name = old.name  # copying renames what is called like a builtin, such as `input`
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(
            input_specs=[replace(spec, arg=copy.copy(spec.arg)) for spec in signature.input_specs],
            output_specs=[replace(spec, arg=copy.copy(spec.arg)) for spec in signature.output_specs],
        ),
        state_dict=dict(program.state_dict),
        range_constraints=dict(program.range_constraints),
        # the inner modules' calls do not outlive the passes; the root's says how inputs and outputs nest
        module_call_graph=[
            replace(entry, signature=copy.deepcopy(entry.signature) if entry.fqn == "" else None)
            for entry in program.module_call_graph
        ],
        example_inputs=program.example_inputs,
        constants=dict(program.constants),
        verifiers=program.verifiers,
    )


def settled(program: ExportedProgram) -> ExportedProgram:
    """Make the signature name the outputs that the graph now has."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if isinstance(node, fx.Node):
            spec.arg.name = node.name
    return program


def calls(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the graph's fake tensors belong to."""
    for node in graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(value, FakeTensor):
                return value.fake_mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_call(graph: fx.Graph, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a call with these nodes as arguments gives, in fake tensors."""
    values = fx.node.map_arg((tuple(args), dict(kwargs)), lambda node: node.meta["val"])
    with fake_mode(graph), torch.no_grad():
        return target(*values[0], **values[1])


def call(like: fx.Node, target: OpOverload, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node before `like`, with its fake value and the provenance of `like`."""
    graph = like.graph
    with graph.inserting_before(like):
        node = graph.call_function(target, args, kwargs)
    node.meta = provenance(like)
    node.meta["val"] = fake_call(graph, target, args, kwargs)
    return node


def provenance(node: fx.Node) -> dict[str, Any]:
    return {key: node.meta[key] for key in _PROVENANCE if key in node.meta}


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether two fake tensors have equal sizes, compared as expressions."""
    return len(a.shape) == len(b.shape) and all(map(statically_known_true, map(operator.eq, a.shape, b.shape)))


def same_type(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and same_shape(a, b)


def substitute(old: fx.Node, new: fx.Node) -> None:
    """Give every user of `old` the node `new`, and drop `old`."""
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def argument(node: fx.Node, name: str) -> Any:
    """A call's argument by the name that the op's schema gives it, or that argument's default."""
    assert isinstance(node.target, OpOverload)
    if name in node.kwargs:
        return node.kwargs[name]
    for index, given in enumerate(node.target._schema.arguments):
        if given.name == name:
            return node.args[index] if index < len(node.args) and not given.kwarg_only else given.default_value
    raise AssertionError(f"{node.target} has no argument {name!r}")


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Put `value` in the place of an argument, also where it was left to its default."""
    assert isinstance(node.target, OpOverload)
    names = [given.name for given in node.target._schema.arguments]
    index = names.index(name)
    if name not in node.kwargs and index <= len(node.args):
        node.args = (*node.args[:index], value, *node.args[index + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def lift(program: ExportedProgram, tensor: Tensor, name: str) -> fx.Node:
    """A new constant of the program, as a placeholder before the user's inputs."""
    tensor = tensor.detach()
    # a view would drag the whole storage into every saved file
    if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    graph, specs = program.graph, program.graph_signature.input_specs
    taken = {node.name for node in graph.nodes} | set(program.constants) | set(program.state_dict)
    name = next(new for n in itertools.count() if (new := f"{name}_{n}") not in taken)
    index = next((i for i, spec in enumerate(specs) if spec.kind not in _LIFTED), len(specs))
    following: fx.Node = next(node for i, node in enumerate(graph.nodes) if i >= index)
    mode = fake_mode(graph)
    with graph.inserting_before(following):
        node: fx.Node = graph.placeholder(name)
    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
    specs.insert(index, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), name, None))
    program.constants[name] = tensor
    return node


def inline(node: fx.Node, module: fx.GraphModule, arguments: Sequence[Any], constant: Callable[[Tensor], fx.Node]) -> Any:
    """Copy a module's graph to before `node`, with `arguments` for its placeholders. Gives what stands for its outputs.

    constant: makes a node of a tensor that the module holds. `node` and its users are left as they are.
    """
    values: dict[fx.Node, Any] = {}
    given = iter(arguments)
    for inner in module.graph.nodes:
        if inner.op == "placeholder":
            values[inner] = next(given)
        elif inner.op == "get_attr":
            attribute = getattr_path(module, inner.target)
            values[inner] = constant(attribute) if isinstance(attribute, Tensor) else attach(node, attribute, "body")
        elif inner.op == "output":
            return fx.node.map_arg(inner.args[0], values.__getitem__)
        else:
            with node.graph.inserting_before(node):
                values[inner] = node.graph.node_copy(inner, values.__getitem__)
            values[inner].meta = {**inner.meta, **provenance(node)}
    raise AssertionError("a graph without an output")


def attach(node: fx.Node, attribute: Any, name: str) -> fx.Node:
    """A node for a tensor or a branch that the graph's module then holds, before `node`."""
    owner = node.graph.owning_module
    assert owner is not None
    name = next(free for n in itertools.count() if not hasattr(owner, free := f"{name}_{n}"))
    setattr(owner, name, attribute)
    with node.graph.inserting_before(node):
        new = node.graph.get_attr(name)
    if isinstance(attribute, Tensor):
        new.meta["val"] = fake_mode(node.graph).from_tensor(attribute, static_shapes=True)
    return new


def getattr_path(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def replace_outputs(node: fx.Node, result: Any) -> bool:
    """Give the users of `node` what `inline` returned, and drop `node`. False, with nothing done, where an output is no node."""
    if isinstance(result, fx.Node):
        substitute(node, result)
        return True
    users = list(node.users)
    if not isinstance(result, (tuple, list)) or any(user.target is not operator.getitem for user in users):
        return False
    chosen = [result[user.args[1]] for user in users]  # type: ignore[index]
    if not all(isinstance(new, fx.Node) for new in chosen):
        return False
    for user, new in zip(users, chosen, strict=True):
        substitute(user, new)
    node.graph.erase_node(node)
    return True
