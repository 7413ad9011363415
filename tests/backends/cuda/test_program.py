"""Texts that hooks are made of."""

from __future__ import annotations

import pytest
import torch

from torchsmith.backends.cuda.expressions import literal, python_type
from torchsmith.backends.cuda.layout import View, channels_last, contiguous
from torchsmith.backends.cuda.program import OPERANDS, HookWriter, Space, is_pointwise
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Shape, symbol
from torchsmith.ir.graph import Node, Value
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.unary import Unary

N = symbol("n")


def writer_of(*values: tuple[Value, Shape]) -> HookWriter:
    return HookWriter({v: View(v, strides) for v, strides in values}, lambda value: None)


def half(name: str, *shape: int) -> Value:
    return Value(name, TensorType(tuple(shape), torch.float16))


def test_an_operand_that_lies_as_the_space_is_read_flat() -> None:
    x, y = half("x", 2, 8, 4, 4), half("y", 2, 8, 4, 4)
    writer = writer_of((x, channels_last(x.type.shape)), (y, contiguous(y.type.shape)))
    space = Space((2, 8, 4, 4), (("i", (0, 2, 3, 1)),))
    assert writer.offset(x, space) == "i"
    assert writer.offset(y, space) == "(i // 128) * 128 + ((i // 8) % 16) + (i % 8) * 16"


def test_broadcasting() -> None:
    bias, scale, one = half("bias", 8, 1, 1), half("scale", 2, 8, 1, 1), half("one", 1)
    writer = writer_of(*((v, contiguous(v.type.shape)) for v in (bias, scale, one)))
    space = Space((2, 8, 4, 4), (("rows", (0, 2, 3)), ("cols", (1,))))
    assert writer.offset(bias, space) == "cols"
    assert writer.offset(scale, space) == "(rows // 16) * 8 + cols"
    assert writer.offset(one, space) == "0"


def test_coordinates() -> None:
    writer = writer_of()
    space = Space((2, 8, 4, 5), (("rows", (0, 2, 3)), ("cols", (1,))))
    assert [writer.coordinate(d, space) for d in range(4)] == ["(rows // 20)", "cols", "((rows // 5) % 4)", "(rows % 5)"]


def test_sizes_known_at_run_time_are_parameters() -> None:
    x = Value("x", TensorType((2, N, 8), torch.float16))
    writer = writer_of((x, (8 * N, 8, 1)))
    assert writer.offset(x, Space((2, N, 8), (("outer", (0,)), ("i", (1, 2))))) == "outer * z0 + i"
    assert writer.arguments()["z0"] == 8 * N and writer.arguments()["z1"] is None


def test_too_many_operands_are_refused() -> None:
    writer = writer_of()
    with pytest.raises(Unsupported, match="more than 8 operands"):
        for index in range(OPERANDS + 1):
            writer.operand(half(f"x{index}", 1))


def test_literals() -> None:
    assert [literal(n) for n in (1, 0.5, float("inf"), float("-inf"), True)] == [
        "1",
        "0.5",
        "float('inf')",
        "float('-inf')",
        "True",
    ]
    assert literal(float("nan")) == "float('nan')"
    assert [python_type(n) for n in ("fp16", "i64", "u8", "i1", "bf16")] == ["float16", "int64", "uint8", "int1", "bfloat16"]


def test_what_has_an_expression() -> None:
    x, y = half("x", 4), half("y", 4)
    assert is_pointwise(Node(Unary("silu"), (x,), (y,))) and not is_pointwise(Node(Unary("lgamma"), (x,), (y,)))
    whole = [Value(n, TensorType((4,), torch.int64)) for n in "abc"]
    assert is_pointwise(Node(Binary("div_floor"), (whole[0], whole[1]), (whole[2],)))
    assert not is_pointwise(Node(Binary("pow"), (whole[0], whole[1]), (whole[2],)))
    complex_ = [Value(n, TensorType((4,), torch.complex64)) for n in "ab"]
    assert not is_pointwise(Node(Unary("neg"), (complex_[0],), (complex_[1],)))
