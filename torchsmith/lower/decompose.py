"""Ops that have no converter are taken apart, where PyTorch knows how and every part then has one.

Asked by converting: an op that converts is never touched. Where some part would be refused, the op stays whole, so that the
refusal names what the user wrote.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_unbacked_symbols
from torch.utils import _pytree as pytree

from torchsmith.convert import Converter, parameters_of, probe, types_of
from torchsmith.errors import Unsupported
from torchsmith.lower.aliases import is_composite
from torchsmith.lower.editing import Lowering, attach, fake_mode, getattr_path, inline, lift, replace_outputs, same_type, settled
from torchsmith.lower.functionalize import functional

# How often parts may be taken apart again.
_MAX_DEPTH = 8
# The quantize stage reads these as they are.
_WHOLE = ("fake_quantize", "quantize", "dequantize")

# A graph that does what a node does, and the node's arguments for its placeholders.
Parts = tuple[fx.GraphModule, list[Any]]


def decompose(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """New nodes have the source line of the op that they came from."""
    tensors = parameters_of(program)
    converter = Converter(program, tensors)
    hopeless = set[str]()  # calls that were tried in vain; the same call fails again
    for node in list(program.graph.nodes):
        if _converts(node, converter) or (call := _call(node, tensors)) in hopeless:
            continue
        parts = _parts(node, tensors, program, how, 0)
        if parts is None:
            hopeless.add(call)
        else:
            result = inline(node, *parts, lambda tensor: lift(program, tensor, "c_part"))
            assert replace_outputs(node, result), f"the parts of {node.format_node()} give {result}"
    return settled(program)


def _converts(node: fx.Node, converter: Converter) -> bool:
    """Whether the node has a converter that takes it, or is nothing that could be taken apart."""
    if not isinstance(node.target, OpOverload) or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
        return True
    try:
        probe(converter, node)
        types_of(node)
    except Unsupported:
        return False
    return True


def _call(node: fx.Node, tensors: Mapping[str, Tensor]) -> str:
    """The op and its arguments, with types for tensors: what decides how the op is taken apart."""

    def shown(argument: fx.Node) -> str:
        value = argument.meta.get("val")
        return f"{value.dtype}{tuple(value.shape)}" if isinstance(value, Tensor) and argument.name not in tensors else argument.name

    return f"{node.target} {fx.node.map_arg((node.args, dict(node.kwargs)), shown)}"


def _parts(node: fx.Node, tensors: Mapping[str, Tensor], program: ExportedProgram, how: Lowering, depth: int) -> Parts | None:
    """The node as a graph of ops that all convert; None where there is none. tensors: the constants around the node, by name."""
    traced = None if depth == _MAX_DEPTH or how.keeps(node) else _traced(node)
    if traced is None or not functional(traced[0].graph):
        return None
    module, arguments = traced
    module.graph.eliminate_dead_code()
    inside = _constants(module, arguments, tensors)
    converter = Converter(program, inside)
    for inner in list(module.graph.nodes):
        if _converts(inner, converter):
            continue
        parts = _parts(inner, inside, program, how, depth + 1)
        if parts is None or not replace_outputs(inner, inline(inner, *parts, functools.partial(attach, inner, name="c_part"))):
            return None
        inside.update(_constants(module, arguments, tensors))
    return module, arguments


def _constants(module: fx.GraphModule, arguments: list[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a graph's placeholders and attributes are known to be, by the names of their nodes."""
    found = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, argument in zip(placeholders, arguments, strict=True):
        if isinstance(argument, fx.Node) and argument.name in tensors:
            found[node.name] = tensors[argument.name]
    for node in module.graph.nodes:
        if node.op == "get_attr":
            found[node.name] = getattr_path(module, node.target)
    return found


def _traced(node: fx.Node) -> Parts | None:
    """One step of PyTorch's decomposition, composite ops in it left whole, in fake tensors with the node's symbolic sizes."""
    function = _decomposition(node.target)
    if function is None:
        return None
    flat, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    arguments = [item for item in flat if isinstance(item, fx.Node)]

    def run(*values: Any) -> Any:
        given = iter(values)
        args, kwargs = pytree.tree_unflatten([next(given) if isinstance(item, fx.Node) else item for item in flat], spec)
        return function(*args, **kwargs)

    values = [argument.meta["val"] for argument in arguments]
    mode = fake_mode(node.graph)
    try:
        with torch.no_grad(), mode, _no_guards(mode.shape_env):
            module = make_fx(run, pre_dispatch=True)(*values)
    except (RuntimeError, NotImplementedError):  # what PyTorch raises where a decomposition does not hold for these arguments
        return None
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    if isinstance(named := output.args[0], fx.Node) and isinstance(named.target, type):  # a named tuple of several outputs
        output.args = (named.args,)
        module.graph.erase_node(named)
    return (module, arguments) if _fits(node, output.args[0]) and not _adds_symbols(module, values) else None


@functools.cache
def _decomposition(target: Any) -> Callable[..., Any] | None:
    """What PyTorch has for the op: its composite implementation, or else the way to core ATen."""
    if not isinstance(target, OpOverload) or target._overloadpacket.__name__.startswith(_WHOLE):
        return None
    if is_composite(target):

        def composite(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():  # under which tracing would record the op itself
                return target.decompose(*args, **kwargs)

        return composite
    table = _core_table()
    return table[target] if target in table else None  # noqa: SIM401 - its `get` does not know what it holds


@functools.cache
def _core_table() -> Mapping[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions

    table: Mapping[Any, Callable[..., Any]] = core_aten_decompositions()
    return table


def _no_guards(env: ShapeEnv | None) -> AbstractContextManager[None]:
    """A decomposition may not assume more about sizes than the program does; it fails where it would."""
    if env is None:
        return nullcontext()
    return env.error_on_new_guards() if hasattr(env, "error_on_new_guards") else _known_only(env)


@contextmanager
def _known_only(env: ShapeEnv) -> Iterator[None]:
    """What `error_on_new_guards` does, for torch 2.11, which lacks it."""
    original = env.evaluate_expr

    def evaluate(expr: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("fallback_value") is None and isinstance(expr, sympy.Basic) and env._maybe_evaluate_static(expr) is None:
            raise RuntimeError(f"a guard on {expr}")
        return original(expr, *args, **kwargs)

    env.evaluate_expr = evaluate  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        del env.evaluate_expr


def _fits(node: fx.Node, result: Any) -> bool:
    """Whether the outputs that are used are tensors of the types that the node gives."""
    wanted = node.meta["val"]
    if isinstance(wanted, Tensor):
        return isinstance(result, fx.Node) and _alike(wanted, result.meta["val"])
    if not isinstance(result, (tuple, list)) or len(result) != len(wanted):
        return False
    used = {user.args[1] for user in node.users}
    return all(isinstance(result[i], fx.Node) and _alike(wanted[i], result[i].meta["val"]) for i in used)  # type: ignore[index]


def _alike(wanted: Tensor, given: Any) -> bool:
    return isinstance(given, Tensor) and same_type(wanted, given)


def _adds_symbols(module: fx.GraphModule, values: list[Any]) -> bool:
    """Whether the parts have sizes that depend on the data in a way that the node had not."""

    def symbols(vals: list[Any]) -> set[Any]:
        flat = [v for v in pytree.tree_leaves(vals) if isinstance(v, (Tensor, torch.SymInt))]
        return set().union(*(free_unbacked_symbols(v) for v in flat))

    return not symbols([n.meta.get("val") for n in module.graph.nodes]) <= symbols(values)
