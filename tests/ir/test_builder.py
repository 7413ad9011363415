"""Building graphs: names, constants, origins, and what is dropped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from torchsmith.ir.builder import Builder, constant, current, expected
from torchsmith.ir.graph import Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.unary import Unary

F32 = TensorType((2,), torch.float32)


def test_names_are_unique() -> None:
    with Builder() as builder:
        names = [builder.input(F32, name).name for name in ("x", "x", "x_1", "x", "unary")]
        names += [Unary("relu")(builder.inputs[0]).name for _ in range(2)]
    assert len(set(names)) == len(names) and names[:2] == ["x", "x_1"]


def test_reserved_names_are_not_given() -> None:
    builder = Builder()
    builder.reserve(["x", "x_1"])
    assert builder.input(F32, "x").name not in ("x", "x_1")


def test_what_no_output_needs_is_dropped() -> None:
    with Builder({"n": (1, 4)}) as builder:
        x, _ = builder.input(F32), builder.input(F32)
        kept = Unary("relu")(Unary("neg")(x))
        Unary("abs")(x)
        constant(torch.ones(2))
    graph = builder.finish([kept])
    assert len(graph.inputs) == 2 and [str(node.op) for node in graph.nodes] == ["Unary[neg]", "Unary[relu]"]
    assert not graph.constants and graph.ranges == {"n": (1, 4)}


def test_constants_hold_no_gradients() -> None:
    with Builder() as builder:
        c = constant(torch.ones(2, requires_grad=True), "weight")
    assert c.name == "weight" and not builder.constants[c].requires_grad


def test_origins_and_expectations_are_nested() -> None:
    with Builder() as builder:
        x = builder.input(F32)
        with builder.at("outer", (F32,)):
            a = Unary("relu")(x)
            with builder.at("inner"):
                b = Unary("relu")(a)
            assert expected() == F32
            c = Unary("relu")(b)
        d = Unary("relu")(c)
    assert [node.origin for node in builder.finish([d]).nodes] == ["outer", "inner", "outer", ""]


def test_builders_are_nested_and_belong_to_a_thread() -> None:
    with Builder() as outer:
        with Builder() as inner:
            assert current() is inner
        assert current() is outer
        with ThreadPoolExecutor() as pool, pytest.raises(AssertionError, match="outside a Builder"):
            pool.submit(current).result()


def test_an_op_takes_values() -> None:
    with Builder(), pytest.raises(AssertionError, match="which is no Value"):
        Unary("relu")(3)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="outside a Builder"):
        Unary("relu")(Value("x", F32))
