"""Sizes: arithmetic over symbols, broadcasting, and text that can be read back."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, bind, broadcast, dim_of, floordiv, parse, product, same, simplify, symbol, symbols_in, total

N, M = symbol("s0"), symbol("s1")


def expressions() -> st.SearchStrategy[Dim]:
    leaves = st.one_of(st.integers(0, 40), st.sampled_from([N, M]))

    def larger(inner: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(total),
            pairs.map(product),
            pairs.map(lambda p: simplify(p[0] - p[1])),
            st.tuples(inner, st.integers(1, 5)).map(lambda p: floordiv(*p)),
            st.tuples(inner, st.integers(2, 5)).map(lambda p: simplify(Mod(sympy.sympify(p[0]) ** 2, sympy.Integer(p[1])))),
            pairs.map(lambda p: simplify(Max(*p))),
            pairs.map(lambda p: simplify(Min(*p))),
        )

    return st.recursive(leaves, larger, max_leaves=6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions(), st.integers(1, 20), st.integers(1, 20))
def test_text_gives_the_same_size_back(size: Dim, n: int, m: int) -> None:
    read = parse(str(size))
    env = {"s0": n, "s1": m}
    assert bind(read, env) == bind(size, env)
    assert same(read, size) and str(read) == str(size)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("-3", -3),
        ("s0", N),
        ("2*s0 + 1", 2 * N + 1),
        ("s0**2 - s1", N**2 - M),
        ("(s0 + 1)//2", FloorDiv(N + 1, sympy.Integer(2))),
        ("Mod(s0, 4)", Mod(N, 4)),
        ("s0 % 4", Mod(N, 4)),
        ("(2*s0)//2", N),
        ("Max(3, 5)", 5),
    ],
)
def test_reading(text: str, size: Dim) -> None:
    assert same(parse(text), size) and isinstance(parse(text), int) == isinstance(size, int)


@pytest.mark.parametrize(
    "text",
    [
        "", "s0 +", "1.5", "'a'", "s0.is_integer", "s0[0]", "__import__('os')", "exec('1')", "lambda: 0", "s0 if s0 else 1", "[1]",
        "True", "s0 / 2", "s0 ** s1", "2 ** -1", "9**9**9**9", "2**64", "Mod(1)", "1//0", "Max(s0, key=1)",
        "(" * 300 + "1" + ")" * 300, "-" * 3000 + "1", "1+" * 9000 + "1",
    ],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse(text)


def test_what_torch_export_records() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(x.shape[0] * 2 + x.shape[1] // 3)

    dims = {0: torch.export.Dim("a", min=2, max=8), 1: torch.export.Dim("b", min=3, max=9)}
    program = torch.export.export(Net(), (torch.randn(4, 6),), dynamic_shapes=({**dims},))
    (node,) = (node for node in program.graph.nodes if "zeros" in str(node.target))
    size = dim_of(node.meta["val"].shape[0])
    (a, b) = (str(s) for s in next(iter(program.graph.nodes)).meta["val"].shape)
    assert symbols_in(size) == {a, b} and bind(size, {a: 4, b: 7}) == 10
    assert dim_of(3) == 3 and dim_of(sympy.Integer(3)) == 3


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (sympy.Symbol("u0", integer=True) + 1, "depends on the data"),
        (sympy.Symbol("s0", integer=True, positive=True) / 2, "know no Half"),
        (sympy.floor(sympy.sqrt(sympy.Symbol("s0", integer=True, positive=True))), "know no floor"),
    ],
)
def test_sizes_that_engines_do_not_know(size: sympy.Expr, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        dim_of(size)


def test_broadcasting() -> None:
    assert broadcast((N, 1, 3), (4, 1)) == (N, 4, 3)
    assert broadcast((2 * N,), (N + N,)) == (2 * N,)
    assert broadcast() == () and broadcast((), (3,)) == (3,)
    assert broadcast((0, 1), (1, 5)) == (0, 5)
    with pytest.raises(Unsupported, match="do not broadcast"):
        broadcast((N,), (M,))
    with pytest.raises(Unsupported, match="do not broadcast"):
        broadcast((2,), (3,))


def test_arithmetic() -> None:
    assert same(N + N, 2 * N) and not same(N, M) and not same(N, 2) and same(3, 3)
    assert product([2, N, 3]) == 6 * N and product([]) == 1 and total([1, N, 2]) == N + 3 and total([]) == 0
    assert floordiv(7, 2) == 3 and floordiv(4 * N, 2) == 2 * N and floordiv(-7, 2) == -4
    assert isinstance(simplify(N - N + 2), int)
    assert floordiv(N**2, N) == N and floordiv(2 * N + N * M, N) == M + 2 and same(floordiv(N, M) * M, N) is False
    assert same(floordiv(N - 1, 2) + 1, floordiv(N + 1, 2)) and same(floordiv(7 * N - 9, 4), N - 3 + floordiv(3 * N + 3, 4))
    assert same(floordiv(floordiv(N - 1, 2), 2) + 1, floordiv(floordiv(N + 1, 2) + 1, 2))
    assert not same(floordiv(N, 2), floordiv(N + 1, 2)) and same(2 * floordiv(4 * N + 1, 4), 2 * N)
    assert bind((N, (M, "s0", None)), {"s0": 2, "s1": 3}) == (2, (3, "s0", None))
    assert symbols_in([N, (M, 3), "s9"]) == {"s0", "s1"} and symbols_in(()) == set()
