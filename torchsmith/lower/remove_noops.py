"""What inference does not need goes: dropout, identities, copies that nobody can tell from their originals, settled asserts.

Without the copies some views would find strides that they cannot view; so every view becomes a reshape, which copies where
it must and is the same everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from torchsmith.lower.aliases import is_seen
from torchsmith.lower.editing import Lowering, argument, calls, same_shape, settled, substitute

aten = torch.ops.aten

_IDENTITIES = {
    aten.alias.default, aten.detach.default, aten.lift.default, aten.lift_fresh.default, aten.positive.default,
    aten.resolve_conj.default, aten.resolve_neg.default,
}  # fmt: skip
_REAL_IDENTITIES = {aten.real.default, aten.conj.default, aten._conj.default, aten.conj_physical.default}
_DROPOUTS = {
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
}  # fmt: skip
_COPIES = {
    aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default, aten.detach_copy.default, aten.alias_copy.default,
}  # fmt: skip
# Elements keep their order in these, so that where the shape stays too nothing is left of them.
_RESHAPES = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_as.default, aten.reshape_as.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.expand_as.default, aten.broadcast_to.default, aten.slice.Tensor, aten.narrow.default,
}  # fmt: skip
_CASTS = {
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.to.prim_Device, aten.to.prim_dtype,
    aten.type_as.default, aten._to_copy.default,
}  # fmt: skip
_PERMUTES = {aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default}
_ASSERTS = {
    aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}  # fmt: skip
_VIEWS: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
}


def remove_noops(program: ExportedProgram, how: Lowering) -> ExportedProgram:
    """Every removal is exact, and none makes the program return memory that it did not return before."""
    for node in calls(program):
        if node.target in _ASSERTS:
            if _holds(node):
                program.graph.erase_node(node)
            continue
        if how.keeps(node):
            continue
        node.target = _VIEWS.get(node.target, node.target)
        original = next((found for rule in RULES if (found := rule(node)) is not None), None)
        if original is not None:
            substitute(node, original)
    return settled(program)


def _holds(node: fx.Node) -> bool:
    """Whether an assert follows from the ranges and types that every call is checked for."""
    if node.target is aten._assert_tensor_metadata.default:
        return True  # torch.export recorded the metadata that its own inputs have
    subject = node.args[0].meta["val"] if isinstance(node.args[0], fx.Node) else node.args[0]
    if isinstance(subject, (bool, int)):
        return subject is not False
    # what torch.export knows of a size that depends on the data, it knows from these very asserts
    if free_unbacked_symbols(subject):
        return False
    return not isinstance(subject, torch.SymBool) or statically_known_true(subject)


def _identity(node: fx.Node) -> fx.Node | None:
    if node.target in _IDENTITIES or (node.target in _REAL_IDENTITIES and not _value(node.args[0]).is_complex()):
        return _first(node)
    return None


def idle_dropout(node: fx.Node) -> fx.Node | None:
    """What a dropout that does nothing is given, and returns."""
    if node.target in _DROPOUTS and (not argument(node, "train") or argument(node, "p") == 0):
        return _first(node)
    return None


def _copy(node: fx.Node) -> fx.Node | None:
    return _first(node) if node.target in _COPIES and not is_seen(node) else None


def _same_shape(node: fx.Node) -> fx.Node | None:
    return _first(node) if node.target in _RESHAPES and same_shape(_value(node), _value(_first(node))) else None


def _cast(node: fx.Node) -> fx.Node | None:
    """A cast to the dtype that is there; or a cast back to it, by way of a dtype that holds all its numbers."""
    if node.target not in _CASTS:
        return None
    source, after = _first(node), _value(node)
    if not isinstance(source.meta["val"], Tensor) or _value(source).device != after.device:
        return None
    if _value(source).dtype == after.dtype:
        return source if _is_view(node) or not is_seen(node) else None
    if (
        source.target in _CASTS
        and holds(_value(source).dtype, (first := _value(_first(source))).dtype)
        and first.device == after.device
    ):
        if first.dtype == after.dtype:
            return _first(source) if not is_seen(node) else None
        if node.target is aten.to.dtype:
            node.replace_input_with(source, _first(source))
    return None


def _permute(node: fx.Node) -> fx.Node | None:
    """A transposition that another one undoes, or that leaves every dimension where it is."""
    order = permutation(node)
    if order is None:
        return None
    if order == list(range(len(order))):
        return _first(node)
    inner = permutation(_first(node))
    if inner is not None and [inner[axis] for axis in order] == list(range(len(order))):
        return _first(_first(node))
    return None


RULES: tuple[Callable[[fx.Node], fx.Node | None], ...] = (_identity, idle_dropout, _copy, _same_shape, _cast, _permute)


def permutation(node: fx.Node) -> list[int] | None:
    """For an op that reorders dimensions: which of its input's each dimension of the result is."""
    if node.target not in _PERMUTES:
        return None
    rank = _value(node).dim()
    order = list(range(rank))
    if node.target is aten.permute.default:
        dims: Any = node.args[1]
        return [axis % rank for axis in dims] if rank else []
    if node.target is aten.numpy_T.default:
        return order[::-1]
    if rank >= 2:
        a, b = (argument(node, "dim0"), argument(node, "dim1")) if node.target is aten.transpose.int else (-1, -2)
        order[a], order[b] = order[b], order[a]
    return order


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every number of dtype `narrow` is also one of dtype `wide`."""
    if narrow == torch.bool or wide == narrow:
        return True
    if wide == torch.bool or wide.is_complex or narrow.is_complex:
        return False
    if narrow.is_floating_point:
        if not wide.is_floating_point:
            return False
        a, b = torch.finfo(wide), torch.finfo(narrow)
        return a.eps <= b.eps and a.max >= b.max and a.smallest_normal * a.eps <= b.smallest_normal * b.eps
    low, high = torch.iinfo(narrow).min, torch.iinfo(narrow).max
    if wide.is_floating_point:  # whole numbers are exact up to 2 / eps
        return max(-low, high) <= 2 / torch.finfo(wide).eps and high <= torch.finfo(wide).max
    return torch.iinfo(wide).min <= low and high <= torch.iinfo(wide).max


def _first(node: fx.Node) -> fx.Node:
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


def _value(node: object) -> Tensor:
    assert isinstance(node, fx.Node)
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _is_view(node: fx.Node) -> bool:
    """Whether a cast that changes nothing returns its argument itself."""
    if node.target is aten._to_copy.default:
        return False
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    plain = "memory_format" not in names or argument(node, "memory_format") in (None, torch.preserve_format)
    return plain and not ("copy" in names and argument(node, "copy"))
