"""Whether a program that was traced at a larger size is still the model at size 1."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from torchsmith.capture.private import device_of
from torchsmith.errors import CaptureError
from torchsmith.inputs import Axis, ExampleInputs, Input


def check_smallest(program: ExportedProgram, module: nn.Module, inputs: ExampleInputs) -> None:
    """Raise CaptureError where the model does something else at size 1 than at the sizes that it was traced with.

    Export takes every dynamic size for one that is not 1, and leaves to the user what that means for code such as
    `x.squeeze()` or `if x.shape[0] > 1`. So where a range has 1 in it, model and program are run once there and compared; the
    tolerance is wide, for what is looked for are other shapes and other branches.

    module: what was traced; its buffers are left as they are.
    """
    described = [leaf for leaf in pytree.tree_leaves(inputs.described) if isinstance(leaf, Input)]
    if not any(isinstance(d, Axis) and d.size("least") == 1 for leaf in described for d in leaf.dims):
        return
    args, kwargs = inputs.at("least", device_of(module))
    leaves = zip(inputs.places, pytree.tree_leaves((args, kwargs)), inputs.dims, strict=True)
    at = "the smallest sizes (" + ", ".join(f"{place}: {list(leaf.shape)}" for place, leaf, dims in leaves if dims) + ")"
    wanted = _model(module, copy.deepcopy(args), copy.deepcopy(kwargs), at)
    try:
        with torch.no_grad():
            given = program.graph_module(*_lifted(program), *_flat(program, args, kwargs))
    except (RuntimeError, AssertionError) as error:
        raise CaptureError(f"what works at larger sizes fails at {at}: {str(error).splitlines()[0]}. Raise the min to 2") from error
    random = any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in program.graph.nodes)
    promised = _promised(program, _flat(program, args, kwargs))
    for want, have, shape in zip(pytree.tree_leaves(wanted), given, promised, strict=True):
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
    _drop_guards(program)


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


def _flat(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    assert program.call_spec.in_spec is not None
    _, names = program.call_spec.in_spec.unflatten([None] * program.call_spec.in_spec.num_leaves)
    leaves: list[Any] = pytree.tree_leaves((args, {name: kwargs[name] for name in names}))
    return leaves


def _promised(program: ExportedProgram, leaves: list[Any]) -> list[list[int] | None]:
    """The shapes that the program says its outputs have when it is given these inputs; None for one that it does not say."""
    nodes = list(program.graph.nodes)
    users = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT}
    declared = [n.meta.get("val") for n in nodes if n.op == "placeholder" and n.name in users]
    sizes: dict[Any, int] = {}
    for value, leaf in zip(declared, leaves, strict=True):
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
