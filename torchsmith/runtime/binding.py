"""From the arguments of a call, given in any way that the original takes them, to the leaves that a plan takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torchsmith.errors import InvalidInput
from torchsmith.runtime.plan import OPAQUE, REQUIRED, Parameter, Plan
from torchsmith.runtime.structure import Structure

_MANY, _NAMED = inspect.Parameter.VAR_POSITIONAL.name, inspect.Parameter.VAR_KEYWORD.name


class Binder:
    """Knows the original's signature, and which of its arguments the model was compiled with."""

    def __init__(self, plan: Plan) -> None:
        args, kwargs = plan.nested_inputs.children
        self.args: tuple[Structure, ...] = args.children
        self.kwargs: dict[str, Structure] = dict(zip(kwargs.context or (), kwargs.children, strict=True))
        self.parameters = plan.parameters
        self.signature = signature_of(plan.parameters)
        flat = all(child.type is None for child in (*self.args, *self.kwargs.values()))
        self.flat_keys = tuple(self.kwargs) if flat else None
        self.direct = len(self.args) if flat and not kwargs.children else -1
        """As many positional arguments are the leaves themselves; -1 where binding is needed."""

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """The leaves, in the plan's order. Raises InvalidInput where the arguments are not nested as they were at compile time."""
        if self.flat_keys is not None and len(args) == len(self.args) and len(kwargs) == len(self.flat_keys):
            try:
                return [*args, *[kwargs[key] for key in self.flat_keys]]
            except KeyError:
                pass  # given by other names: bound as Python would
        given = self._bind(args, kwargs)
        leaves: list[Any] = []
        for (name, nested), value in zip(self._compiled(), given, strict=True):
            nested.flatten(value, name, leaves)
        return leaves

    def _compiled(self) -> list[tuple[str, Structure]]:
        return [*((self._name(i), nested) for i, nested in enumerate(self.args)), *self.kwargs.items()]

    def _name(self, position: int) -> str:
        names = [p.name for p in self.parameters if p.kind in ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")]
        if position < len(names):
            return names[position]
        many = next((p.name for p in self.parameters if p.kind == _MANY), "args")
        return f"{many}[{position - len(names)}]"

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The value of every compiled argument, after a check that the others have the values that were compiled in."""
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidInput(f"{error}; the model takes {self.signature}") from error
        many = next((p for p in self.parameters if p.kind == _MANY), None)
        named = next((p for p in self.parameters if p.kind == _NAMED), None)
        single = {p.name: p for p in self.parameters if p.kind not in (_MANY, _NAMED)}
        positional = [name for name, p in single.items() if p.kind != "KEYWORD_ONLY"]
        rest = list(bound.get(many.name, ())) if many else []
        extra = dict(bound.get(named.name, {})) if named else {}
        wanted = max(0, len(self.args) - len(positional))
        if len(rest) != wanted:
            raise InvalidInput(f"*{many.name if many else 'args'} has {len(rest)} values; the model was compiled with {wanted}")
        values = [_given(single[name], bound) for name in positional[: len(self.args)]] + rest
        for name in self.kwargs:
            if name in single:
                values.append(_given(single[name], bound))
            elif name in extra:
                values.append(extra.pop(name))
            else:
                raise InvalidInput(f"argument {name!r} is missing; the model was compiled with it")
        if extra:
            raise InvalidInput(
                f"argument {next(iter(extra))!r} was not given when the model was compiled; compile it again with it"
            )
        left_out = [name for name in single if name not in {*positional[: len(self.args)], *self.kwargs}]
        for name in left_out:
            _check_default(single[name], bound)
        return values


def _given(parameter: Parameter, bound: Mapping[str, Any]) -> Any:
    if parameter.name in bound:
        return bound[parameter.name]
    if parameter.default is REQUIRED or parameter.default is OPAQUE:
        raise InvalidInput(f"argument {parameter.name!r} is missing; the model was compiled with it")
    return parameter.default


def _check_default(parameter: Parameter, bound: Mapping[str, Any]) -> None:
    """An argument that was left out at compile time has its default, now and for ever."""
    value = bound.get(parameter.name, parameter.default)
    if value is parameter.default or (type(value) is type(parameter.default) and value == parameter.default):
        return
    default = "its default" if parameter.default is OPAQUE else f"its default {parameter.default!r}"
    raise InvalidInput(
        f"argument {parameter.name!r} was left out when the model was compiled, so {default} is built in; "
        "compile it again with this argument"
    )


def signature_of(parameters: Sequence[Parameter]) -> inspect.Signature:
    """Raises ValueError where the parameters make no signature."""
    empty = inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(
                p.name, getattr(inspect._ParameterKind, p.kind), default=empty if p.default is REQUIRED else p.default
            )
            for p in parameters
        ]
    )
