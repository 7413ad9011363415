"""Conditions on sizes that torch.export meets and cannot prove, as 2 * ((n - 1) // 8) <= (n - 1) // 4: tried out for every size."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from sympy.logic import boolalg
from torch import SymBool, Tensor, fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Mod, PythonMod
from torch.utils._sympy.functions import Max as SymMax
from torch.utils._sympy.functions import Min as SymMin

from torchsmith.ir.dim import without_floats

aten = torch.ops.aten

_MOST_CASES = 1 << 22  # that one condition is tried for

_FLOOR = functools.partial(torch.div, rounding_mode="floor")
# What conditions are made of, as functions of tensors. Sums, products and the like have any number of operands.
_FUNCTIONS: dict[type, Callable[[Any, Any], Any]] = {
    sympy.Add: operator.add, sympy.Mul: operator.mul, sympy.Pow: operator.pow,
    FloorDiv: _FLOOR, CleanDiv: _FLOOR, Mod: torch.remainder, PythonMod: torch.remainder,
    SymMax: torch.maximum, SymMin: torch.minimum,
    sympy.Eq: operator.eq, sympy.Ne: operator.ne, sympy.StrictLessThan: operator.lt, sympy.LessThan: operator.le,
    sympy.StrictGreaterThan: operator.gt, sympy.GreaterThan: operator.ge,
    boolalg.And: operator.and_, boolalg.Or: operator.or_,
}  # fmt: skip


def are_met(program: ExportedProgram) -> bool:
    """Whether what tracing took for granted of sizes is true of all sizes in their ranges. False where that is too much to try.

    program: exported with `prefer_deferred_runtime_asserts_over_guards`. Not all of its conditions are assertions in the graph.
    """
    conditions = [_expression(node) for node in program.graph.nodes if node.target is aten._assert_scalar.default]
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    for tracing in {value.fake_mode.shape_env for value in values if isinstance(value, FakeTensor)}:
        if tracing is None:
            continue
        conditions += [guard.expr for guard in tracing.guards]
        conditions += [deferred.expr for several in tracing.deferred_runtime_asserts.values() for deferred in several]
    return all(_is_met(condition, program.range_constraints) for condition in dict.fromkeys(conditions))


def _expression(node: fx.Node) -> Any:
    """What a node asserts: a sympy expression, a bool, or None where it is computed from numbers in tensors."""
    given: Any = node.args[0]
    condition = given.meta.get("val") if isinstance(given, fx.Node) else given
    return condition.node.expr if isinstance(condition, SymBool) else condition if isinstance(condition, bool) else None


def _is_met(condition: Any, known: Mapping[sympy.Symbol, Any]) -> bool:
    """known: ranges of symbols."""
    if condition is None or isinstance(condition, bool):
        return bool(condition)
    condition = without_floats(condition)
    ranges = {symbol: known.get(symbol) for symbol in condition.free_symbols}
    if any(found is None or not found.upper.is_Integer or not found.lower.is_Integer for found in ranges.values()):
        return False
    sizes = [range(int(found.lower), int(found.upper) + 1) for found in ranges.values() if found is not None]
    if math.prod(map(len, sizes)) > _MOST_CASES:
        return False
    cases = torch.meshgrid(*(torch.arange(s.start, s.stop) for s in sizes), indexing="ij") if sizes else ()
    found = _computed(condition, dict(zip(ranges, cases, strict=True)))
    return found is not None and bool(found.all())


def _computed(expression: Any, cases: Mapping[sympy.Symbol, Tensor]) -> Tensor | None:
    """The expression's value in every case; None where it has a function that is unknown here."""
    if isinstance(expression, sympy.Symbol):
        return cases[expression]
    if isinstance(expression, sympy.Integer):
        return torch.tensor(int(expression))
    if isinstance(expression, (boolalg.BooleanTrue, boolalg.BooleanFalse)):
        return torch.tensor(bool(expression))
    values = [_computed(argument, cases) for argument in expression.args]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if isinstance(expression, boolalg.Not):
        return ~known[0]
    function = _FUNCTIONS.get(type(expression))
    return None if function is None else functools.reduce(function, known)
