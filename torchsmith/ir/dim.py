"""Sizes: an `int`, or a sympy expression over the symbols of a graph's input shapes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import sympy
from torch import SymInt
from torch.utils._sympy.functions import CeilToInt, CleanDiv, FloorDiv, FloorToInt, IntTrueDiv, Mod, PythonMod, ToFloat, TruncToInt
from torch.utils._sympy.functions import Max as SymMax
from torch.utils._sympy.functions import Min as SymMin

from torchsmith import sizes
from torchsmith.errors import Unsupported

Dim: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = "tuple[Dim, ...]"

# What sizes are made of: everything here can be written as text, and read back by `parse`.
_UNDERSTOOD = (
    sympy.Integer, sympy.Symbol, sympy.Add, sympy.Mul, sympy.Pow, FloorDiv, CleanDiv, Mod, PythonMod, SymMax, SymMin,
)  # fmt: skip
_MOST_PARTS = 1 << 10  # of a whole, in a float that counts as a fraction


def symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def dim_of(size: int | SymInt | sympy.Expr) -> Dim:
    """The size that torch.export recorded, with its symbols renamed to ours. Raises Unsupported for a data-dependent one."""
    if isinstance(size, SymInt):
        size = size.node.expr
    if isinstance(size, (int, sympy.Integer)):
        return int(size)
    unbacked = sorted(s.name for s in size.free_symbols if s.name.startswith(("u", "zuf")))
    if unbacked:
        raise Unsupported(f"a size depends on the data ({', '.join(unbacked)}), and engines take sizes from shapes alone")
    renamed = simplify(without_floats(size.xreplace({s: symbol(s.name) for s in size.free_symbols})))
    if stranger := foreign(renamed):
        raise Unsupported(f"a size is {renamed}, and engines know no {stranger} in sizes")
    return renamed


def without_floats(size: sympy.Expr) -> sympy.Expr:
    """The same with quotients of integers in the place of rounded floats: math.ceil(n / 7), int(n * 0.5).

    Factors are those of few binary places, which no rounding of floats has touched.
    """
    for kind in (CeilToInt, FloorToInt, TruncToInt):
        if size.has(kind):
            size = size.replace(kind, functools.partial(_rounded, kind))
    return size


def _rounded(kind: Any, x: sympy.Expr) -> sympy.Expr:
    """kind(x), x being a float."""
    factor, rest = x.as_coeff_Mul()
    if isinstance(x, IntTrueDiv) and x.args[1].is_Integer and x.args[1] > 0:
        a, b = x.args
    elif isinstance(rest, ToFloat):
        p, b = map(sympy.Integer, float(factor).as_integer_ratio())
        a = p * rest.args[0]
    else:
        return kind(x)
    if b > _MOST_PARTS or (kind is TruncToInt and not a.is_nonnegative):
        return kind(x)
    return FloorDiv(a + b - 1 if kind is CeilToInt else a, b)


def foreign(size: Dim) -> str | None:
    """The name of a function in the size that engines do not know; None where there is none."""
    parts = () if isinstance(size, int) else sympy.preorder_traversal(size)
    return next((type(part).__name__ for part in parts if not isinstance(part, _UNDERSTOOD)), None)


def simplify(size: Dim) -> Dim:
    return size if isinstance(size, int) else _simplified(size)


@functools.lru_cache(maxsize=1 << 16)  # a model has the same few sizes thousands of times
def _simplified(size: sympy.Expr) -> Dim:
    size, before = sympy.expand(size), None
    while size != before and size.has(FloorDiv):  # quotients in others change those
        size, before = sympy.expand(size.replace(FloorDiv, _quotient)), size
    return int(size) if size.is_Integer else size


def _quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """a // b in the one form that equal quotients by a number have: what b divides stands outside, a quotient inside is joined."""
    numerator, denominator = sympy.fraction(sympy.together(sympy.cancel(a / b)))
    if denominator == 1:
        return numerator
    if not (b.is_Integer and b > 0):
        return FloorDiv(a, b)
    terms = [term.as_coeff_Mul() for term in sympy.Add.make_args(sympy.expand(a))]
    whole = sum(coefficient // b * rest for coefficient, rest in terms if coefficient.is_Integer)
    left = sympy.expand(a - b * whole)
    inner = [part for part in sympy.Add.make_args(left) if part.has(FloorDiv)]
    if len(inner) == 1 and isinstance(inner[0], FloorDiv) and inner[0].args[1].is_Integer and inner[0].args[1] > 0:
        x, m = inner[0].args
        return whole + FloorDiv(sympy.expand(x + m * (left - inner[0])), m * b)  # (x // m + n) // b
    return whole + FloorDiv(left, b)


def same(a: Dim, b: Dim) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(simplify(a - b) == 0)


def floordiv(a: Dim, b: Dim) -> Dim:
    return a // b if isinstance(a, int) and isinstance(b, int) else simplify(FloorDiv(sympy.sympify(a), sympy.sympify(b)))


def product(factors: Sequence[Dim]) -> Dim:
    result: Dim = 1
    for size in factors:
        result = result * size
    return simplify(result)


def total(parts: Sequence[Dim]) -> Dim:
    result: Dim = 0
    for size in parts:
        result = result + size
    return simplify(result)


def symbols_in(value: Any) -> set[str]:
    """Names of the symbols in a size, or in any nesting of tuples and lists of sizes."""
    if isinstance(value, sympy.Expr):
        return {s.name for s in value.free_symbols}
    if isinstance(value, (tuple, list)):
        return set().union(*map(symbols_in, value)) if value else set()
    return set()


def bind(value: Any, env: Mapping[str, int]) -> Any:
    """Replace every size expression in `value` (nested tuples too) by its number under `env`."""
    if isinstance(value, sympy.Expr):
        return int(value.xreplace({s: sympy.Integer(env[s.name]) for s in value.free_symbols}))
    if isinstance(value, tuple):
        return tuple(bind(v, env) for v in value)
    return value


def broadcast(*shapes: Shape) -> Shape:
    """The shape that PyTorch's broadcasting gives. Raises Unsupported where two sizes cannot be shown to agree."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for axis in range(rank):
        size: Dim = 1
        for shape in shapes:
            index = axis - rank + len(shape)
            other = shape[index] if index >= 0 else 1
            if same(other, 1) or same(other, size):
                continue
            if not same(size, 1):
                raise Unsupported(f"sizes {size} and {other} of {shapes} do not broadcast")
            size = other
        out.append(size)
    return tuple(out)


_ALGEBRA: sizes.Algebra = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": floordiv,
    "%": lambda a, b: Mod(sympy.sympify(a), sympy.sympify(b)),
    "**": operator.pow,
    "max": SymMax,
    "min": SymMin,
}


def parse(text: str) -> Dim:
    """Read back what `str(size)` wrote. Raises ValueError for anything but arithmetic."""
    size = sizes.parse(text)
    try:
        return simplify(size.evaluate({name: symbol(name) for name in size.symbols}, _ALGEBRA))
    except (RecursionError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is no size: {type(error).__name__}: {error}") from error
