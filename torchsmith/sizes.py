"""Sizes as text, such as `2*s0 + 1`: read strictly, evaluated over integers or SymInts, never by running code.

A size has integers, symbols, `+ - * // % **`, and `Max Min Mod PythonMod FloorDiv CleanDiv`, as sympy prints them.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Dim: TypeAlias = "int | str"  # as specs and plans have it; text is an expression

_LONGEST = 10_000  # characters; deeper nesting would overflow Python's own parser
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
_FUNCTIONS = {"Max": "max", "Min": "min", "Mod": "%", "PythonMod": "%", "FloorDiv": "//", "CleanDiv": "//"}

Algebra: TypeAlias = "Mapping[str, Callable[[Any, Any], Any]]"  # what each operation does to two sizes
NUMBERS: Algebra = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "max": torch.sym_max,
    "min": torch.sym_min,
}


@dataclass(frozen=True)
class Size:
    """One expression. symbols: the names in it, in order of appearance."""

    text: str
    symbols: tuple[str, ...]
    tree: ast.expr

    def evaluate(self, values: Mapping[str, Any], algebra: Algebra = NUMBERS) -> Any:
        """The size, an int or a SymInt as the values are, or of another algebra. Raises KeyError for a symbol without a value."""
        return _evaluate(self.tree, values, algebra)

    def source(self, names: Mapping[str, str]) -> str:
        """Python source of the size, over Python names for the symbols."""
        return _source(self.tree, names)

    def affine(self) -> tuple[str, int, int] | None:
        """(symbol, a, b) where the size is `a*symbol + b` with a != 0, else None."""
        found = _affine(self.tree)
        if found is None:
            return None
        terms = {name: factor for name, factor in found[0].items() if factor}
        if len(terms) != 1:
            return None
        ((name, factor),) = terms.items()
        return name, factor, found[1]


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Size:
    """Read an expression. Raises ValueError, in a sentence, for anything but a size."""
    if len(text) > _LONGEST:
        raise ValueError(f"{text[:40]!r}… is no size: it has {len(text)} characters, and {_LONGEST} are the most")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} is no size: {error}") from error
    symbols: dict[str, None] = {}
    try:
        _check(tree, text, symbols)
    except RecursionError as error:  # newer Pythons parse deeper than they can walk
        raise ValueError(f"{text[:40]!r}… is no size: it is nested too deeply") from error
    return Size(text, tuple(symbols), tree)


def solve_shapes(shapes: Sequence[Sequence[Dim]], sizes: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The symbols' values, read where a symbol stands alone: shapes as text, sizes of the tensors, one of each a tensor."""
    values: dict[str, Any] = {}
    for shape, actual in zip(shapes, sizes, strict=True):
        for dim, size in zip(shape, actual, strict=True):
            if isinstance(dim, str) and dim.isidentifier():
                values.setdefault(dim, size)
    return values


def evaluate(dim: Dim, values: Mapping[str, Any]) -> Any:
    return dim if isinstance(dim, int) else parse(dim).evaluate(values)


def _check(node: ast.expr, text: str, symbols: dict[str, None]) -> None:
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 2**63:
        return
    if isinstance(node, ast.Name) and node.id not in _FUNCTIONS:
        symbols[node.id] = None
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return _check(node.operand, text, symbols)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        if isinstance(node.op, ast.Pow) and not (isinstance(node.right, ast.Constant) and node.right.value in range(1, 9)):
            raise ValueError(f"{text!r} is no size: an exponent must be a number from 1 to 8")
        _check(node.left, text, symbols)
        return _check(node.right, text, symbols)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords:
        if len(node.args) < 2 or (len(node.args) > 2 and node.func.id not in ("Max", "Min")):
            raise ValueError(f"{text!r} is no size: {node.func.id} has {len(node.args)} arguments")
        for arg in node.args:
            _check(arg, text, symbols)
        return
    raise ValueError(f"{text!r} is no size: {ast.unparse(node)!r} in it is neither an integer, a symbol nor a known operation")


def _evaluate(node: ast.expr, values: Mapping[str, Any], algebra: Algebra) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, values, algebra)
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, values, algebra), _evaluate(node.right, values, algebra)
        return algebra[_OPERATORS[type(node.op)]](left, right)
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), ast.dump(node)
    return functools.reduce(algebra[_FUNCTIONS[node.func.id]], (_evaluate(arg, values, algebra) for arg in node.args))


def _source(node: ast.expr, names: Mapping[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.UnaryOp):
        return f"(-{_source(node.operand, names)})"
    if isinstance(node, ast.BinOp):
        return f"({_source(node.left, names)} {_OPERATORS[type(node.op)]} {_source(node.right, names)})"
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), ast.dump(node)
    python, args = _FUNCTIONS[node.func.id], [_source(arg, names) for arg in node.args]
    return f"{python}({', '.join(args)})" if python in ("max", "min") else f"({args[0]} {python} {args[1]})"


def _affine(node: ast.expr) -> tuple[dict[str, int], int] | None:
    """Factors by symbol, and the constant; None for what is not linear."""
    if isinstance(node, ast.Constant):
        return {}, int(node.value)  # type: ignore[arg-type]  # checked on reading
    if isinstance(node, ast.Name):
        return {node.id: 1}, 0
    if isinstance(node, ast.UnaryOp):
        inner = _affine(node.operand)
        return inner and _scaled(inner, -1)
    if isinstance(node, ast.BinOp):
        left, right = _affine(node.left), _affine(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, (ast.Add, ast.Sub)):
            right = _scaled(right, -1) if isinstance(node.op, ast.Sub) else right
            terms = {name: left[0].get(name, 0) + right[0].get(name, 0) for name in {**left[0], **right[0]}}
            return terms, left[1] + right[1]
        if isinstance(node.op, ast.Mult) and not (left[0] and right[0]):
            return _scaled(left, right[1]) if left[0] else _scaled(right, left[1])
    return None


def _scaled(form: tuple[dict[str, int], int], by: int) -> tuple[dict[str, int], int]:
    return {name: factor * by for name, factor in form[0].items()}, form[1] * by
