"""Whether a call fits an exported program."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind


def misfit(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call with these arguments is not the one that the program was exported for; None where it is.

    Compared are the structure, constants, element types and sizes (within `program.range_constraints`), not values.
    """
    in_spec = program.call_spec.in_spec
    if in_spec is None:
        return None
    names = in_spec.unflatten([None] * in_spec.num_leaves)[1]
    if set(names) != set(kwargs):
        return f"its keyword inputs are {sorted(names)}, and the call has {sorted(kwargs)}"
    leaves, spec = pytree.tree_flatten_with_path((args, {name: kwargs[name] for name in names}))
    if spec != in_spec:
        return f"it takes {in_spec.num_leaves} inputs in the structure {in_spec}, and the call has {spec}"
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    declared = [s.arg for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    sizes: dict[Any, int] = {}
    for (path, given), argument in zip(leaves, declared, strict=True):
        if isinstance(argument, ConstantArgument):
            reason = _constant(argument.value, given)
        else:
            reason = _tensor(values[argument.name], given, sizes)
        if reason:
            return f"{argument.name or pytree.keystr(path)} {reason}"
    return _outside(program, sizes)


def _constant(declared: Any, given: Any) -> str | None:
    same = type(declared) is type(given) and declared == given
    return None if same else f"was exported as the constant {declared!r}, and the call has {_text(given)}"


def _tensor(declared: Any, given: Any, sizes: dict[Any, int]) -> str | None:
    """Compare one tensor, noting in `sizes` what its shape says of the symbols."""
    if not isinstance(declared, torch.Tensor):
        return None if isinstance(given, type(declared)) else f"was exported as {_text(declared)}, and the call has {_text(given)}"
    if not isinstance(given, torch.Tensor):
        return f"was exported as a tensor, and the call has {_text(given)}"
    if declared.dtype != given.dtype:
        return f"was exported as {declared.dtype}, and the call has {given.dtype}"
    if declared.dim() != given.dim():
        return f"was exported with {declared.dim()} dimensions, and the call has {given.dim()}"
    for i, (want, have) in enumerate(zip(declared.shape, given.shape, strict=True)):
        expression = want.node.expr if isinstance(want, torch.SymInt) else want
        if getattr(expression, "is_Symbol", False):
            expected: Any = sizes.setdefault(expression, int(have))
        else:
            expected = expression.subs(sizes) if isinstance(want, torch.SymInt) else want
        if not getattr(expected, "free_symbols", None) and int(expected) != have:
            return f"was exported with size {int(expected)} in dimension {i}, and the call has {int(have)}"
    return None


def _outside(program: ExportedProgram, sizes: dict[Any, int]) -> str | None:
    for symbol, size in sizes.items():
        allowed = program.range_constraints.get(symbol)
        if allowed is not None and not allowed.lower <= size <= allowed.upper:
            return f"the size {size} is outside of {allowed.lower}..{allowed.upper}, for which it was exported"
    return None


def _text(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
