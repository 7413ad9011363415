"""The nesting of a call's inputs and outputs: dicts, tuples, registered classes, with leaves in a fixed order.

The same as a pytree's `TreeSpec`, but readable from a file without importing or calling what the file names.
"""

from __future__ import annotations

import importlib
import json
import re
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torchsmith.errors import InvalidInput, PackageError

_PLAIN = {"builtins.tuple": tuple, "builtins.list": list, "builtins.dict": dict, "collections.OrderedDict": OrderedDict}
_FACTORIES = {"builtins.list": list, "builtins.dict": dict, "builtins.int": int, "builtins.float": float, "builtins.set": set}
# Modules of transformers that define outputs; importing them registers their classes.
_TRANSFORMERS = re.compile(r"transformers\.(modeling_outputs|models\.\w+\.modeling_\w+)\.\w+")


@dataclass(frozen=True)
class Structure:
    """A node. type: its class, or None for a leaf. context: what the class needs besides its children, such as dict keys."""

    type: Any
    context: Any
    children: tuple[Structure, ...]

    @staticmethod
    def of(spec: pytree.TreeSpec) -> Structure:
        """Read torch's description."""
        if spec.is_leaf():
            return LEAF
        context = spec._context if hasattr(spec, "_context") else spec.context
        children = spec._children if hasattr(spec, "_children") else spec.children_specs
        return Structure(_plain(spec.type), context, tuple(map(Structure.of, children)))

    @property
    def leaves(self) -> int:
        return 1 if self.type is None else sum(child.leaves for child in self.children)

    def paths(self, path: str) -> Iterator[str]:
        """What messages call each leaf, such as `batch['ids'][0]`."""
        if self.type is None:
            yield path
        keys = self._keys()
        for key, child in zip(keys, self.children, strict=True):
            yield from child.paths(f"{path}[{key!r}]")

    def flatten(self, value: Any, path: str, leaves: list[Any]) -> None:
        """Append the leaves of `value`, which must be nested in this way. Raises InvalidInput, naming the place.

        Dictionaries may have their keys in any order, and a list will do for a tuple.
        """
        if self.type is None:
            leaves.append(value)
            return
        for child, key, part in zip(self.children, self._keys(), self._parts(value, path), strict=True):
            child.flatten(part, f"{path}[{key!r}]", leaves)

    def check(self) -> None:
        """Raises ValueError where the keys are not as many as the children."""
        if self.type in (dict, OrderedDict, defaultdict):
            keys = self.context[1] if self.type is defaultdict else self.context
            if (
                not isinstance(keys, list)
                or len(keys) != len(self.children)
                or not all(map(_hashable, keys))
                or len(set(keys)) < len(keys)
            ):
                raise ValueError(f"a dictionary has {len(self.children)} values and the keys {keys!r}")
        for child in self.children:
            child.check()

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """The value with these leaves."""
        if self.type is None:
            return next(leaves)
        return self.build([child.unflatten(leaves) for child in self.children])

    def build(self, children: list[Any]) -> Any:
        """The value of this node from its children's."""
        return pytree.SUPPORTED_NODES[self.type].unflatten_fn(children, self.context)

    def _keys(self) -> list[Any]:
        if isinstance(self.context, (list, tuple)) and len(self.context) == len(self.children):
            return list(self.context)
        if self.type is defaultdict:
            return list(self.context[1])
        return list(range(len(self.children)))

    def _parts(self, value: Any, path: str) -> list[Any]:
        name = getattr(self.type, "__name__", str(self.type))
        if self.type in (dict, OrderedDict, defaultdict):
            keys = self._keys()
            if not isinstance(value, dict):
                raise InvalidInput(f"{path} is {_a(value)}; it takes a {name} with the keys {', '.join(map(repr, keys))}")
            if missing := [key for key in keys if key not in value]:
                raise InvalidInput(f"{path} has no {missing[0]!r}; it takes the keys {', '.join(map(repr, keys))}")
            if extra := [key for key in value if key not in keys]:
                raise InvalidInput(f"{path} has {extra[0]!r} too many; it takes the keys {', '.join(map(repr, keys))}")
            return [value[key] for key in keys]
        if self.type in (tuple, list):
            if not isinstance(value, (tuple, list)) or len(value) != len(self.children):
                raise InvalidInput(f"{path} is {_a(value)}; it takes a {name} of {len(self.children)}")
            return list(value)
        parts = self._registered(value)
        if parts is None:
            inside = f" with {self.context}" if isinstance(self.context, list) else ""
            raise InvalidInput(f"{path} is {_a(value)}; it takes a {name}{inside}, as the model was compiled with")
        return parts

    def _registered(self, value: Any) -> list[Any] | None:
        """The children of a value of a class that pytree knows; None where its class, context or number of children differ."""
        named: Any = namedtuple  # pytree's key for all of them
        if not (type(value) is self.type or (self.type is named and isinstance(value, self.context))):
            return None
        children, context = pytree.SUPPORTED_NODES[self.type].flatten_fn(value)
        return list(children) if context == self.context and len(list(children)) == len(self.children) else None

    def to_json(self) -> Any:
        """Plain data. Raises PackageError for a class that has no name to be found by in another process."""
        if self.type is None:
            return None
        name = _serialized_name(self.type)
        if name is None:
            raise PackageError(
                f"{self.type.__module__}.{self.type.__name__} is among the inputs or outputs, and torch has no name to save it "
                "under; register it with a serialized_type_name (torch.export.register_dataclass), or return a dict or tuple"
            )
        return [name, self._context_json(name), [child.to_json() for child in self.children]]

    def _context_json(self, name: str) -> Any:
        if self.type is defaultdict:
            factory = next((n for n, f in _FACTORIES.items() if f is self.context[0]), None)
            if factory is None:
                raise PackageError(
                    f"a defaultdict of {self.context[0]} is among the inputs or outputs, and cannot be saved; use a dict"
                )
            return [factory, _check_keys(self.context[1])]
        if name in _PLAIN or self.type is deque:
            return _check_keys(self.context) if isinstance(self.context, list) else self.context
        dump = pytree.SUPPORTED_SERIALIZED_TYPES[self.type].to_dumpable_context
        try:
            context = self.context if dump is None else dump(self.context)
            json.dumps(context)
        except (TypeError, NotImplementedError) as error:
            raise PackageError(
                f"{name} is among the inputs or outputs, and cannot be saved: {error}; return a dict or tuple"
            ) from error
        return context

    @staticmethod
    def from_json(data: Any) -> Structure:
        """Read plain data. Raises PackageError for a class that this process does not know and may not import."""
        if data is None:
            return LEAF
        name, context, children = data
        type = _find(name)
        if type is defaultdict:
            if context[0] not in _FACTORIES:
                raise PackageError(
                    f"a defaultdict of {context[0]!r} is among the inputs or outputs; torchsmith makes none from a file"
                )
            context = [_FACTORIES[context[0]], _check_keys(context[1])]
        elif name not in _PLAIN and type is not deque:
            load = pytree.SUPPORTED_SERIALIZED_TYPES[type].from_dumpable_context
            try:
                context = context if load is None else load(context)
            except NotImplementedError as error:  # a named tuple's class
                raise PackageError(_unregistered(str(context))) from error
        return Structure(type, context, tuple(map(Structure.from_json, children)))


LEAF = Structure(None, None, ())


def _plain(type: Any) -> Any:
    """fx's immutable containers are the plain ones to a caller."""
    if type in (torch.fx.immutable_collections.immutable_list, torch.fx.immutable_collections.immutable_dict):
        return type.__bases__[0]
    return type


def _serialized_name(type: Any) -> str | None:
    found = next((name for name, plain in _PLAIN.items() if plain is type), None)
    if found is None and type in pytree.SUPPORTED_SERIALIZED_TYPES:
        found = pytree.SUPPORTED_SERIALIZED_TYPES[type].serialized_type_name
        found = None if found == pytree.NO_SERIALIZED_TYPE_NAME_FOUND else found
    return found


def _find(name: Any) -> Any:
    """The class of a serialized name: one that is registered here, or one of transformers' outputs."""
    if not isinstance(name, str) or name == pytree.NO_SERIALIZED_TYPE_NAME_FOUND or (name[:6] == "torch." and name != "torch.Size"):
        raise PackageError(f"{name!r} is no name of a class among the inputs or outputs")
    if name in _PLAIN:
        return _PLAIN[name]
    if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE and _TRANSFORMERS.fullmatch(name):
        try:
            importlib.import_module(name.rpartition(".")[0])
        except ImportError as error:
            raise PackageError(
                f"the outputs have the class {name}, and it cannot be imported ({error}); install transformers"
            ) from error
    if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE:
        raise PackageError(_unregistered(name))
    return pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name]


def _unregistered(name: str) -> str:
    return (
        f"the inputs or outputs have the class {name!r}, which is not registered in this process; "
        f"import {name.rpartition('.')[0] or 'its module'} (or call torch.export.register_dataclass) before torchsmith.load"
    )


def _check_keys(keys: list[Any]) -> list[Any]:
    for key in keys:
        if not isinstance(key, (str, int, bool, float)):
            raise PackageError(f"a dictionary among the inputs or outputs has the key {key!r}; only texts and numbers can be saved")
    return keys


def _hashable(key: Any) -> bool:
    return key is None or isinstance(key, (str, int, float))


def _a(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
