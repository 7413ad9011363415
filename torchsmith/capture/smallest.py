"""Whether a program that was traced at a larger size is still the model at size 1."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._sympy.value_ranges import ValueRanges

from torchsmith.capture.private import device_of
from torchsmith.errors import CaptureError
from torchsmith.inputs import Axis, ExampleInputs, Input


def check_smallest(program: ExportedProgram, module: nn.Module, inputs: ExampleInputs, dims: Mapping[str, Any]) -> None:
    """Raise CaptureError where the model does something else at size 1 than at the sizes that it was traced with.

    Export takes every dynamic size for one that is not 1, and leaves to the user what that means for code such as
    `x.squeeze()` or `if x.shape[0] > 1`. So where a range has 1 in it, model and program are run once there and compared; the
    tolerance is wide, for what is looked for are other shapes and other branches.

    Where export was told that a size is at least 2 though the user said 1 (`diagnose.above_one`), the program gets the whole
    range here, and is compared with that size alone being 1, too.

    module: what was traced; its buffers are left as they are. dims: what was traced in the place of the user's dimensions, by
    their names.
    """
    described = [leaf for leaf in pytree.tree_leaves(inputs.described) if isinstance(leaf, Input)]
    if not any(isinstance(d, Axis) and d.size("least") == 1 for leaf in described for d in leaf.dims):
        return
    _compare(program, module, inputs, inputs.at("least", device_of(module)))
    for name in _give_back(program, inputs, dims):
        _compare(program, module, inputs, _with_one(name, inputs, dims, device_of(module)))
    _drop_guards(program)


def _give_back(program: ExportedProgram, inputs: ExampleInputs, dims: Mapping[str, Any]) -> list[str]:
    """Let sizes be 1 that the user said may be, and that were traced as at least 2. The names of the dimensions traced."""
    allowed = {dim.__name__: dim for own in inputs.dims for dim in own.values() if hasattr(dim, "__name__")}
    found = list[str]()
    for symbol, name in names_of(program, inputs).items():
        traced = dims.get(name, allowed[name])
        least = max(dim.min for own, dim in allowed.items() if dims.get(own, dim).__name__ == traced.__name__)
        if least <= 1 < traced.min:
            program.range_constraints[symbol] = ValueRanges(least, program.range_constraints[symbol].upper)
            found.append(traced.__name__)
    return found


def _with_one(
    name: str, inputs: ExampleInputs, dims: Mapping[str, Any], device: torch.device | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of size 1 where the traced dimension of that name is, and of the sizes that were traced elsewhere."""
    leaves, structure = pytree.tree_flatten(inputs.described)
    made = []
    for seed, (leaf, own) in enumerate(zip(leaves, inputs.dims, strict=True)):
        if isinstance(leaf, Input):
            sizes = [axis if isinstance(axis, int) else axis.traced for axis in leaf.dims]
            for axis, dim in own.items():
                if getattr(dims.get(getattr(dim, "__name__", ""), dim), "__name__", "") == name:
                    sizes[axis] = 1
            leaf = leaf.example(tuple(sizes), device, seed)
        made.append(leaf)
    args, kwargs = pytree.tree_unflatten(made, structure)
    return args, kwargs


def _compare(
    program: ExportedProgram, module: nn.Module, inputs: ExampleInputs, given: tuple[tuple[Any, ...], dict[str, Any]]
) -> None:
    args, kwargs = given
    leaves = zip(inputs.places, pytree.tree_leaves(given), inputs.dims, strict=True)
    at = "the smallest sizes (" + ", ".join(f"{place}: {list(leaf.shape)}" for place, leaf, dims in leaves if dims) + ")"
    wanted = _model(module, copy.deepcopy(args), copy.deepcopy(kwargs), at)
    try:
        with torch.no_grad():
            results = program.graph_module(*_lifted(program), *flat(program, args, kwargs))
    except (RuntimeError, AssertionError) as error:
        raise CaptureError(f"what works at larger sizes fails at {at}: {str(error).splitlines()[0]}. Raise the min to 2") from error
    random = any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in program.graph.nodes)
    promised = _promised(program, flat(program, args, kwargs))
    for want, have, shape in zip(pytree.tree_leaves(wanted), results, promised, strict=True):
        if not isinstance(want, torch.Tensor):
            continue
        if list(want.shape) != (shape or list(have.shape)):
            raise CaptureError(
                f"at {at} the model gives a tensor of shape {list(want.shape)}, where larger sizes lead to {shape}: "
                "something in it, such as squeeze() without a dim, takes size 1 for special. Change that, or raise the min to 2"
            )
        if want.shape != have.shape or not (random or _close(want, have)):
            raise CaptureError(
                f"at {at} the model computes something else than at larger sizes. Change that, or raise the min to 2"
            )


def _model(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: str) -> Any:
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad():
            return torch.func.functional_call(module, buffers, args, kwargs)
    except Exception as error:  # the model's own code may raise anything; it becomes the cause of what is raised
        raise CaptureError(f"the model fails at {at} that its inputs allow: {str(error).splitlines()[0]}. Raise the min") from error


def _lifted(program: ExportedProgram) -> list[Any]:
    """What the program's graph takes before the user's inputs; buffers as copies, since it may write to them."""
    values = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT or spec.target is None:
            continue
        value = program.state_dict[spec.target] if spec.target in program.state_dict else program.constants[spec.target]
        values.append(value.clone() if spec.kind == InputKind.BUFFER else value)
    return values


def flat(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """A call's leaves in the order of the program's own inputs."""
    assert program.call_spec.in_spec is not None
    _, names = program.call_spec.in_spec.unflatten([None] * program.call_spec.in_spec.num_leaves)
    leaves: list[Any] = pytree.tree_leaves((args, {name: kwargs[name] for name in names}))
    return leaves


def user_inputs(program: ExportedProgram) -> list[Any]:
    """What the program knows of each leaf: a fake tensor, or a constant."""
    users = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    return [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder" and n.name in users]


def names_of(program: ExportedProgram, inputs: ExampleInputs) -> dict[object, str]:
    """The name of the dimension that each symbol of the program's inputs is the size of."""
    structure = pytree.tree_structure((inputs.args, inputs.kwargs))
    places = flat(program, *pytree.tree_unflatten(list(range(len(inputs.dims))), structure))
    return {
        value.shape[axis].node.expr: dim.__name__
        for value, place in zip(user_inputs(program), places, strict=True)
        if isinstance(value, torch.Tensor)
        for axis, dim in inputs.dims[place].items()
        if isinstance(value.shape[axis], torch.SymInt) and hasattr(dim, "__name__")  # hints such as Dim.AUTO have none
    }


def _promised(program: ExportedProgram, leaves: list[Any]) -> list[list[int] | None]:
    """The shapes that the program says its outputs have when it is given these inputs; None for one that it does not say."""
    nodes = list(program.graph.nodes)
    sizes: dict[Any, int] = {}
    for value, leaf in zip(user_inputs(program), leaves, strict=True):
        for size, known in zip(value.shape, leaf.shape, strict=True) if isinstance(value, torch.Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                sizes[size.node.expr] = int(known)
    shapes: list[list[int] | None] = []
    for output in nodes[-1].args[0]:
        value = output.meta.get("val") if isinstance(output, torch.fx.Node) else None
        shape = [s.node.expr.subs(sizes) if isinstance(s, torch.SymInt) else s for s in getattr(value, "shape", ())]
        whole = isinstance(value, torch.Tensor) and not any(getattr(s, "free_symbols", None) for s in shape)
        shapes.append([int(s) for s in shape] if whole else None)
    return shapes


def _close(want: torch.Tensor, have: torch.Tensor) -> bool:
    if want.is_complex():
        want, have = torch.view_as_real(want), torch.view_as_real(have)
    want, have = want.double(), have.double()
    finite = want[want.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(want, have, rtol=1e-2, atol=1e-3 * scale, equal_nan=True)


def _drop_guards(program: ExportedProgram) -> None:
    """Forget torch's notes that a size is not 0 or 1, which it takes before it looks at what depends on it (seen in 2.14)."""
    guards = getattr(program, "_guards_code", None)
    if guards:
        program._guards_code = [g for g in guards if not re.search(r"\.size\(\)\[\d+\] (!= [01]|> [01]|>= [12])$", g)]
