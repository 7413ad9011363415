"""Graphs for the tests: one made by hand, and a strategy for random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from torchsmith.ir.builder import Builder, constant
from torchsmith.ir.dim import Dim, floordiv, product, simplify, symbol
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.cast import Cast
from torchsmith.ops.permute import Permute
from torchsmith.ops.reduce import Reduce
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.size import Size
from torchsmith.ops.unary import Unary

N = symbol("n")
LIMITS: dict[str, tuple[int, int | None]] = {"n": (1, 16)}
CONSTANTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)


@dataclass(frozen=True)
class EveryKind(Op):
    """x itself, with an attribute of every kind that an op may have."""

    number: int
    real: float
    flag: bool
    text: str
    dtype: torch.dtype
    size: Dim
    nested: tuple[Any, ...]
    nothing: None = None

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: Tensor) -> Tensor:
        assert isinstance(self.size, int) and all(
            isinstance(part, (int, tuple, float, str, torch.dtype, type(None))) for part in self.nested
        )
        return x.clone()


def small() -> Graph:
    """(n, 6) -> its sigmoid times two, and the sum of that; with a symbol, a constant and an origin."""
    with Builder(LIMITS) as builder:
        x = builder.input(TensorType((N, 6), torch.float32))
        with builder.at("aten.mul.Tensor at net.py:7"):
            y = Binary("mul")(Unary("sigmoid")(x), constant(torch.tensor(2.0), "two"))
        z = Reduce("sum", (0, 1), False)(y)
    return builder.finish([y, z])


@st.composite
def attributes(draw: st.DrawFn) -> EveryKind:
    sizes = st.sampled_from([3, N, 2 * N + 1, N**2, floordiv(N + 3, 2), simplify(N * (N - 1))])
    leaves = st.one_of(
        st.integers(-9, 9), st.floats(allow_nan=False), st.none(), st.text(max_size=3), st.sampled_from(CONSTANTS), sizes
    )
    nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
    return EveryKind(
        draw(st.integers(-(2**63), 2**63)),
        draw(st.floats(allow_nan=False)),
        draw(st.booleans()),
        draw(st.text(max_size=5)),
        draw(st.sampled_from(CONSTANTS)),
        draw(sizes),
        tuple(draw(st.lists(nested, max_size=3))),
    )


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs over one input of shape (n, 2, 3), and a few constants."""
    with Builder(LIMITS) as builder:
        values = [builder.input(TensorType((N, 2, 3), torch.float32))]
        for number in range(draw(st.integers(0, 2))):
            dtype = draw(st.sampled_from(CONSTANTS))
            values.append(constant((torch.arange(6).reshape(1, 2, 3) + number).to(dtype), "c"))
        for _ in range(draw(st.integers(0, 6))):
            values.append(draw(step(values)))
        outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    return builder.finish(outputs)


@st.composite
def step(draw: st.DrawFn, values: list[Value]) -> Value:
    x: Value = draw(st.sampled_from(values))
    kind = draw(st.sampled_from(["unary", "binary", "reshape", "permute", "sum", "cast", "attributes", "size"]))
    if kind == "unary" and x.type.dtype.is_floating_point:
        return Unary(draw(st.sampled_from(["relu", "sigmoid", "tanh"])))(x)
    if kind == "binary":
        same = [y for y in values if y.type == x.type]
        return Binary(draw(st.sampled_from(["maximum", "minimum"])))(x, draw(st.sampled_from(same)))
    if kind == "reshape":
        return Reshape(draw(st.sampled_from([(product(x.type.shape),), (1, *x.type.shape), x.type.shape])))(x)
    if kind == "permute" and x.type.rank:
        return Permute(tuple(draw(st.permutations(range(x.type.rank)))))(x)
    if kind == "sum" and x.type.rank and x.type.dtype.is_floating_point:
        return Reduce("sum", (draw(st.integers(0, x.type.rank - 1)),), draw(st.booleans()))(x)
    if kind == "size":
        return Size(N + 1)()
    if kind == "attributes":
        return draw(attributes())(x)
    return Cast(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))(x)
