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
from torch.export import ExportedProgram
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Mod, PythonMod
from torch.utils._sympy.functions import Max as SymMax
from torch.utils._sympy.functions import Min as SymMin

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
    """Whether what a program asserts of sizes is true of all sizes in their ranges. False where that is too much to try."""
    return all(_is_met(node, program) for node in program.graph.nodes if node.target is aten._assert_scalar.default)


def _is_met(node: fx.Node, program: ExportedProgram) -> bool:
    given: Any = node.args[0]
    condition = given.meta.get("val") if isinstance(given, fx.Node) else given
    if isinstance(condition, bool):
        return condition
    expression = condition.node.expr if isinstance(condition, SymBool) else None
    ranges = {} if expression is None else {s: program.range_constraints.get(s) for s in expression.free_symbols}
    if expression is None or any(r is None or not r.upper.is_Integer or not r.lower.is_Integer for r in ranges.values()):
        return False
    sizes = [range(int(r.lower), int(r.upper) + 1) for r in ranges.values() if r is not None]
    if math.prod(map(len, sizes)) > _MOST_CASES:
        return False
    cases = torch.meshgrid(*(torch.arange(s.start, s.stop) for s in sizes), indexing="ij") if sizes else ()
    found = _computed(expression, dict(zip(ranges, cases, strict=True)))
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
