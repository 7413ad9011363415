"""From what the user said about the inputs to tensors to trace with, and to the dimensions that may change."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from torchsmith.errors import InvalidInput
from torchsmith.inputs.input import Axis, Input

_CONSTANTS = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class ExampleInputs:
    """The inputs of one call, made concrete.

    args, kwargs: tensors and constants to trace with, in the structure of the call.
    described: the same (args, kwargs) as the user gave them, an `Input` where a tensor was described.
    places: for every leaf, in flattening order, the words for it in a message, such as `inputs[0]['mask']`.
    dims: for every leaf, the `torch.export.Dim` of each dimension that may change.
    roots: the range of each named dimension, apart from those that are expressions of others.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    described: tuple[tuple[Any, ...], dict[str, Any]]
    places: tuple[str, ...]
    dims: tuple[Mapping[int, Any], ...]
    roots: Mapping[str, Axis]

    def at(self, field: str, device: torch.device | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keyword arguments at the sizes "min", "opt", "max" or "traced"."""
        return _examples(self.described, self.roots, field, device)

    def on(self, device: torch.device | None) -> ExampleInputs:
        """The same with the tensors that Inputs describe made on `device`. The user's own tensors stay where they are."""
        if device is None or device.type == "cpu":
            return self
        args, kwargs = self.at("traced", device)
        return ExampleInputs(args, kwargs, self.described, self.places, self.dims, self.roots)

    @property
    def is_dynamic(self) -> bool:
        return any(self.dims)

    def dynamic_shapes(self, forward: Callable[..., Any], renamed: Mapping[str, Any] | None = None) -> tuple[Any, ...] | None:
        """The structure that `torch.export` takes for a call of `forward`; None where every size is fixed.

        renamed: dimensions to put in the place of others, by name.
        """
        if not self.is_dynamic:
            return None
        renamed = renamed or {}
        found = [_Dims({i: renamed.get(getattr(d, "__name__", ""), d) for i, d in own.items()} or None) for own in self.dims]
        args, kwargs = pytree.tree_unflatten(found, pytree.tree_structure(self.described))
        return tuple(_flat(v) for v in inspect.signature(forward).bind(*args, **kwargs).arguments.values())


@dataclass(frozen=True)
class _Dims:
    """One leaf's dynamic dimensions, in an object of our own so that pytree sees a leaf."""

    by_index: dict[int, Any] | None


def resolve(inputs: Any = None, kwarg_inputs: Mapping[str, Any] | None = None) -> ExampleInputs:
    """Make one call's inputs concrete.

    inputs: the positional arguments, a list or tuple; each is an Input, a tensor, a constant (bool, int, float, str, None) or
    a nested dict, list, tuple or other pytree of those. A single one may stand alone; a dict is one argument, not keywords.
    kwarg_inputs: the keyword arguments.

    Raises InvalidInput, which names the place, for anything else, and for a `Dim` that two inputs define differently.
    """
    several = isinstance(inputs, (list, tuple)) and not hasattr(inputs, "_fields")
    args = tuple(inputs) if several else () if inputs is None else (inputs,)
    if kwarg_inputs is not None and not (isinstance(kwarg_inputs, Mapping) and all(isinstance(k, str) for k in kwarg_inputs)):
        raise InvalidInput(f"kwarg_inputs takes a dict from argument names to inputs, and got {type(kwarg_inputs).__name__}")
    described = args, dict(kwarg_inputs or {})
    paths, _ = pytree.tree_flatten_with_path(described)
    leaves = {_place(path): leaf for path, leaf in paths}
    for place, leaf in leaves.items():
        _check_leaf(place, leaf)
    inputs_at = {place: leaf for place, leaf in leaves.items() if isinstance(leaf, Input)}
    roots = _roots(inputs_at)
    made: dict[Any, Any] = dict.fromkeys(roots)
    dims = tuple(_named(place, inputs_at[place], made) if place in inputs_at else {} for place in leaves)
    traced_args, traced_kwargs = _examples(described, roots, "traced", None)
    return ExampleInputs(traced_args, traced_kwargs, described, tuple(leaves), dims, roots)


def _place(path: tuple[Any, ...]) -> str:
    return ("inputs", "kwarg_inputs")[path[0].idx] + pytree.keystr(path[1:])


def _check_leaf(place: str, leaf: Any) -> None:
    if isinstance(leaf, (Input, torch.Tensor, *_CONSTANTS)):
        return
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
    advice = "pass a tensor, a torchsmith.Input, or a plain bool, int, float, str or None"
    if kind == "numpy.ndarray":
        advice = "pass torch.from_numpy(...) of it"
    elif isinstance(leaf, Mapping):
        advice = "pass dict(...) of it"
    raise InvalidInput(f"{place} is a {kind}, which export cannot trace; {advice}")


def _roots(inputs: Mapping[str, Input]) -> dict[str, Axis]:
    """The range and sizes of each named Dim that is no expression of another. Raises InvalidInput where two inputs disagree."""
    axes = [(place, axis) for place, leaf in inputs.items() for axis in leaf.dims if isinstance(axis, Axis)]
    roots: dict[str, Axis] = {}
    first: dict[str, str] = {}
    for place, axis in axes:
        name = getattr(axis.dim, "__name__", None)
        if name is None or hasattr(axis.dim, "root"):
            continue
        known = roots.setdefault(name, axis)
        first.setdefault(name, place)
        if (known.min, known.max) != (axis.min, axis.max):
            raise InvalidInput(f"Dim {name!r} is {known} in {first[name]} and {axis} in {place}; use one Dim object for both")
        if known.opt != axis.opt:
            raise InvalidInput(
                f"Dim {name!r} has opt_shape {known.opt} in {first[name]} and {axis.opt} in {place}; give one size for both"
            )
    for place, axis in axes:
        if not hasattr(axis.dim, "root"):
            continue
        root = roots.setdefault(axis.dim.root.__name__, Axis.of(axis.dim.root))
        wanted = axis.dim.fn(root.opt)
        if axis.opt != wanted:
            raise InvalidInput(
                f"{place} has opt_shape {axis.opt} for {axis.dim.__name__}, "
                f"which is {wanted} where {axis.dim.root.__name__} is {root.opt}"
            )
    return roots


def _named(place: str, leaf: Input, made: dict[Any, Any]) -> dict[int, Any]:
    """The Dim of each dynamic dimension, made here for those that came from min_shape and max_shape.

    made: the Dims so far by their names, and those of dimension 0 by their range, which inputs of equal range share.
    """
    from torch.export import Dim

    dims: dict[int, Any] = {}
    for i, axis in enumerate(leaf.dims):
        if not isinstance(axis, Axis):
            continue
        if axis.dim is not None:
            dims[i] = axis.dim
        elif i == 0 and axis in made:
            dims[i] = made[axis]
        else:
            stem = re.sub(r"\W+", "_", leaf.name or place.removeprefix("kwarg_")).strip("_")
            name = "batch" if i == 0 and "batch" not in made else f"{stem}_dim{i}"
            while name in made:
                name += "x"
            dims[i] = made[name] = Dim(name, min=axis.min, max=axis.max)
            if i == 0:
                made[axis] = dims[i]
    return dims


def _examples(
    described: tuple[tuple[Any, ...], dict[str, Any]], roots: Mapping[str, Axis], field: str, device: torch.device | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def size(dim: int | Axis) -> int:
        if not isinstance(dim, Axis):
            return dim
        root = getattr(dim.dim, "root", None)
        return int(dim.dim.fn(roots[root.__name__].size(field))) if root is not None else dim.size(field)

    leaves, spec = pytree.tree_flatten(described)
    made = [
        leaf.example(tuple(size(d) for d in leaf.dims), device, seed) if isinstance(leaf, Input) else leaf
        for seed, leaf in enumerate(leaves)
    ]
    args, kwargs = pytree.tree_unflatten(made, spec)
    return args, kwargs


def _flat(tree: Any) -> Any:
    """Dimensions in the structure that torch.export reads: a registered class of the user's as the list of its parts."""
    if isinstance(tree, _Dims):
        return tree.by_index
    kind = pytree._get_node_type(tree)
    children, context = pytree.SUPPORTED_NODES[kind].flatten_fn(tree)
    parts = [_flat(child) for child in children]
    return pytree.SUPPORTED_NODES[kind].unflatten_fn(parts, context) if kind in pytree.BUILTIN_TYPES else parts
