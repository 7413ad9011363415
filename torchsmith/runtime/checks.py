"""Do the tensors of a call fit? One condition that costs nanoseconds, and sentences for when it does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from torchsmith import sizes as shapes
from torchsmith.errors import InvalidInput
from torchsmith.runtime.plan import ConstantInput, Input, Plan, SizeInput, TensorInput
from torchsmith.sizes import Dim


@dataclass(frozen=True)
class Binding:
    """The symbol is read off a leaf, in dimension `dim` (None: the leaf is the size itself): size = factor·symbol + offset."""

    symbol: str
    leaf: int
    dim: int | None
    factor: int
    offset: int


@dataclass(frozen=True)
class Equality:
    """A size that follows from the symbols."""

    leaf: int
    dim: int | None
    size: str


def rules_of(plan: Plan) -> tuple[list[Binding], list[Equality]]:
    """Where each symbol is read, and what then must agree. A size whose symbols no input shows is left unchecked."""
    open_sizes = [
        (leaf, dim, size) for leaf, input_ in enumerate(plan.inputs) for dim, size in _sizes(input_) if isinstance(size, str)
    ]
    bindings: dict[str, Binding] = {}
    for plain in (True, False):  # where a symbol stands alone, that decides
        for leaf, dim, size in open_sizes:
            form = shapes.parse(size).affine()
            if form and form[0] not in bindings and plain == size.isidentifier():
                bindings[form[0]] = Binding(form[0], leaf, dim, form[1], form[2])
    taken = {(b.leaf, b.dim) for b in bindings.values()}
    rest = [Equality(*item) for item in open_sizes if item[:2] not in taken]
    return list(bindings.values()), [e for e in rest if set(shapes.parse(e.size).symbols) <= bindings.keys()]


def condition(plan: Plan, names: Sequence[str], constants: dict[str, Any]) -> tuple[str, str]:
    """Python source: an expression over the leaves' names that is true where they fit, and helper functions that it calls.

    `constants` gets the values that the source refers to by name.
    """
    bindings, equalities = rules_of(plan)
    open_leaves = {b.leaf for b in bindings} | {e.leaf for e in equalities}
    terms = [
        term
        for leaf, input_ in enumerate(plan.inputs)
        for term in _leaf_terms(input_, names[leaf], f"h{leaf}" if leaf in open_leaves else None, constants)
    ]
    variables = {binding.symbol: f"y{number}" for number, binding in enumerate(bindings)}

    def size(leaf: int, dim: int | None) -> str:
        return names[leaf] if dim is None else f"h{leaf}[{dim}]"

    for b in bindings:
        value, (low, high) = size(b.leaf, b.dim), plan.symbols[b.symbol]
        if (b.factor, b.offset) != (1, 0):
            terms.append(f"({value} - {b.offset}) % {b.factor} == 0")
            value = f"({value} - {b.offset}) // {b.factor}"
        bound = f"({variables[b.symbol]} := {value})"
        terms.append(f"{low} <= {bound}" + ("" if high is None else f" <= {high}"))
    terms += [f"{size(e.leaf, e.dim)} == {shapes.parse(e.size).source(variables)}" for e in equalities]
    helpers = ""
    if relations := _relations(plan, variables):
        terms.append(f"related({', '.join(variables.values())})")
        helpers = f"def related({', '.join(variables.values())}):\n    try:\n        return {' and '.join(relations)}\n"
        helpers += "    except ZeroDivisionError:\n        return False\n"
    return " and ".join(terms) or "True", helpers


def _relations(plan: Plan, variables: Mapping[str, str]) -> list[str]:
    known = [r for r in plan.relations if all(s in variables for side in r for s in shapes.parse(side).symbols)]
    return [f"{shapes.parse(left).source(variables)} == {shapes.parse(right).source(variables)}" for left, right in known]


def _leaf_terms(input_: Input, name: str, shape: str | None, constants: dict[str, Any]) -> list[str]:
    """shape: the variable that later terms read the sizes from, None where all are fixed."""
    if isinstance(input_, SizeInput):
        return [f"type({name}) is int"] + ([f"{name} == {input_.size}"] if isinstance(input_.size, int) else [])
    if isinstance(input_, ConstantInput):
        if input_.value is None or isinstance(input_.value, bool):
            return [f"{name} is {input_.value}"]
        constants[f"k{name}"] = input_.value
        return [f"type({name}) is {type(input_.value).__name__} and {name} == k{name}"]
    constants[f"d{name}"] = input_.dtype
    terms = [f"isinstance({name}, Tensor) and {name}.dtype is d{name} and {name}.layout is strided"]
    if input_.device.type == "cpu" or (input_.device.type == "cuda" and input_.device.index is None):
        terms.append(f"{name}.is_{input_.device.type}")
    else:
        constants[f"o{name}"] = input_.device
        terms.append(f"{name}.device == o{name}")
    if shape is None and all(isinstance(size, int) for size in input_.shape):
        constants[f"s{name}"] = input_.shape
        return [*terms, f"{name}.shape == s{name}"]
    shape = shape or f"h_{name}"
    fixed = [f"{shape}[{dim}] == {size}" for dim, size in enumerate(input_.shape) if isinstance(size, int)]
    return [*terms, f"len({shape} := {name}.shape) == {len(input_.shape)}", *fixed]


def misfit(plan: Plan, leaves: Sequence[Any]) -> NoReturn:
    """Raise InvalidInput for a call that the condition rejected: which argument, what it got, what it takes."""
    assert len(leaves) == len(plan.inputs), (len(leaves), len(plan.inputs))
    for input_, value in zip(plan.inputs, leaves, strict=True):
        _check_kind(plan, input_, value)
    bindings, equalities = rules_of(plan)
    values: dict[str, int] = {}

    def size(leaf: int, dim: int | None) -> int:
        return int(leaves[leaf] if dim is None else leaves[leaf].shape[dim])

    for b in bindings:
        got, (low, high) = size(b.leaf, b.dim), plan.symbols[b.symbol]
        if (got - b.offset) % b.factor:
            _refuse(plan, b.leaf, leaves, f"{_place(b.dim)} is {got}, which is not {_form(b)} for a whole {b.symbol}")
        values[b.symbol] = (got - b.offset) // b.factor
        if not low <= values[b.symbol] or (high is not None and values[b.symbol] > high):
            _refuse(plan, b.leaf, leaves, f"{_place(b.dim)} is {got}, out of its range {_range(b, low, high)}")
    for e in equalities:
        want = shapes.evaluate(e.size, values)
        if size(e.leaf, e.dim) != want:
            _refuse(
                plan,
                e.leaf,
                leaves,
                f"{_place(e.dim)} is {size(e.leaf, e.dim)}, and must be {e.size} = {want} as elsewhere in this call",
            )
    shown = {symbol: f"{_place(b.dim)} of {plan.inputs[b.leaf].name!r}" for b in bindings for symbol in [b.symbol]}
    for left, right in plan.relations:
        names = {s for side in (left, right) for s in shapes.parse(side).symbols}
        if names <= values.keys() and not _equal(left, right, values):
            where = ", ".join(f"{name} is {values[name]} ({shown[name]})" for name in sorted(names))
            raise InvalidInput(f"{left} must be equal to {right} for this model, and {where}; use sizes that keep to this")
    raise AssertionError(("the condition and its explanation disagree", plan.inputs, [getattr(v, "shape", v) for v in leaves]))


def _check_kind(plan: Plan, input_: Input, value: Any) -> None:
    """Everything that concerns one leaf alone."""
    if isinstance(input_, ConstantInput):
        if type(value) is not type(input_.value) or value != input_.value:
            raise InvalidInput(
                f"argument {input_.name!r} is {_show(value)}; the model was compiled with {input_.value!r}, and that is built in; "
                "compile it again with the other value"
            )
        return
    if isinstance(input_, SizeInput):
        if type(value) is not int or (isinstance(input_.size, int) and value != input_.size):
            raise InvalidInput(f"argument {input_.name!r} is {_show(value)}; it takes an int")
        return
    takes = f"it takes a {input_.dtype} tensor of shape {describe(plan, input_)} on {input_.device}"
    if not isinstance(value, Tensor):
        raise InvalidInput(f"argument {input_.name!r} is {_show(value)}; {takes}")
    if value.dtype != input_.dtype:
        raise InvalidInput(f"argument {input_.name!r} has dtype {value.dtype}; {takes}; convert it with .to({input_.dtype})")
    if value.layout is not torch.strided:
        raise InvalidInput(f"argument {input_.name!r} has layout {value.layout}; {takes}; convert it with .to_dense()")
    if value.device.type != input_.device.type or (
        input_.device.index not in (None, value.device.index) and input_.device.type != "cpu"
    ):
        raise InvalidInput(f"argument {input_.name!r} is on {value.device}; {takes}; move it with .to({str(input_.device)!r})")
    wrong = len(value.shape) != len(input_.shape) or any(
        isinstance(want, int) and want != got for want, got in zip(input_.shape, value.shape, strict=True)
    )
    if wrong:
        raise InvalidInput(f"argument {input_.name!r} has shape {tuple(value.shape)}; {takes}")


def describe(plan: Plan, input_: TensorInput) -> str:
    """A shape with its ranges, such as (s0, 3, 224, 224) with s0 in 1..16."""
    sizes = ", ".join(map(str, input_.shape)) + ("," if len(input_.shape) == 1 else "")
    symbols = dict.fromkeys(s for size in input_.shape if isinstance(size, str) for s in shapes.parse(size).symbols)
    ranges = [f"{s} in {plan.symbols[s][0]}..{'' if plan.symbols[s][1] is None else plan.symbols[s][1]}" for s in symbols]
    return f"({sizes})" + (f" with {', '.join(ranges)}" if ranges else "")


def _sizes(input_: Input) -> list[tuple[int | None, Dim]]:
    if isinstance(input_, TensorInput):
        return list(enumerate(input_.shape))
    return [(None, input_.size)] if isinstance(input_, SizeInput) else []


def _equal(left: str, right: str, values: Mapping[str, int]) -> bool:
    try:
        return bool(shapes.evaluate(left, values) == shapes.evaluate(right, values))
    except ZeroDivisionError:
        return False


def _refuse(plan: Plan, leaf: int, leaves: Sequence[Any], why: str) -> NoReturn:
    input_, value = plan.inputs[leaf], leaves[leaf]
    got = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"is {value!r}"
    takes = f"; it takes {describe(plan, input_)}" if isinstance(input_, TensorInput) else ""
    raise InvalidInput(f"argument {input_.name!r} {got}: {why}{takes}; compile with another range for other sizes")


def _place(dim: int | None) -> str:
    return "it" if dim is None else f"dimension {dim}"


def _form(binding: Binding) -> str:
    return f"{binding.factor}*{binding.symbol}" + (f" + {binding.offset}" if binding.offset else "")


def _range(binding: Binding, low: int, high: int | None) -> str:
    ends = [None if end is None else end * binding.factor + binding.offset for end in (low, high)]
    return f"{ends[0]}..{'' if ends[1] is None else ends[1]}"


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else f"a {type(value).__name__}"
