"""Sizes as text: read strictly, the same by evaluation and as Python source."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from torchsmith import sizes as shapes

EXPRESSIONS = [
    ("3", 3),
    ("s0", 7),
    ("-s0 + 10", 3),
    ("2*s0 + s1", 19),
    ("(s0 - 1)//2 + 1", 4),
    ("s0 % 4", 3),
    ("s1**2", 25),
    ("Max(1, s0, s1)", 7),
    ("Min(s0, s1)", 5),
    ("Mod(s0, 4)", 3),
    ("PythonMod(s0, s1)", 2),
    ("FloorDiv(s0, 2)", 3),
    ("CleanDiv(s0*s1, s0)", 5),
]


@pytest.mark.parametrize(("text", "value"), EXPRESSIONS)
def test_evaluate(text: str, value: int) -> None:
    size = shapes.parse(text)
    assert size.evaluate({"s0": 7, "s1": 5}) == value
    assert eval(size.source({"s0": "a", "s1": "b"}), {"a": 7, "b": 5, "max": max, "min": min}) == value


@pytest.mark.parametrize(("text", "value"), EXPRESSIONS)
def test_evaluate_over_symints(text: str, value: int) -> None:
    env = ShapeEnv()
    symbols = {name: env.create_unbacked_symint() for name in ("s0", "s1")}
    found = shapes.parse(text).evaluate(symbols)
    named = {str(symbol): size for symbol, size in zip(symbols.values(), (7, 5), strict=True)}
    if isinstance(found, torch.SymInt):
        assert found.node.expr.subs({s: named[str(s)] for s in found.node.expr.free_symbols}) == value
    else:
        assert found == value


@pytest.mark.parametrize(
    "text",
    [
        "", "s0 +", "1.5", "'s0'", "s0.bit_length()", "__import__('os')", "print(1)", "(lambda: 1)()", "[1]", "s0 if 1 else 2",
        "s0 == 1", "s0 / 2", "s0 & 1", "~s0", "True", "s0**s1", "9**9**9", "2**100", "1000000000000000000000", "Max(1)",
        "Mod(1, 2, 3)",        "Max(a=1, b=2)", "Max(*s0)", "Max", "(s0 := 1)", "s0" + "+s0" * 4000, "(" * 300 + "1" + ")" * 300,
    ],
)  # fmt: skip
def test_everything_else_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|longer than"):
        shapes.parse(text)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("s0", ("s0", 1, 0)),
        ("2*s0", ("s0", 2, 0)),
        ("s0*3 - 2 + s0", ("s0", 4, -2)),
        ("-(1 - s0)", ("s0", 1, -1)),
        ("2*(s0 + 1)", ("s0", 2, 2)),
        ("s0 + s1", None),
        ("s0*s1", None),
        ("s0//2", None),
        ("s0 - s0", None),
        ("5", None),
    ],
)
def test_affine(text: str, form: tuple[str, int, int] | None) -> None:
    assert shapes.parse(text).affine() == form


@given(st.integers(-5, 5), st.integers(-9, 9), st.integers(0, 100))
def test_affine_agrees_with_evaluation(factor: int, offset: int, value: int) -> None:
    size = shapes.parse(f"{factor}*n + {offset}".replace("+ -", "- "))
    form = size.affine()
    assert form == (("n", factor, offset) if factor else None)
    assert size.evaluate({"n": value}) == factor * value + offset
