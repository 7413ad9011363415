"""Values, nodes, graphs and types."""

from __future__ import annotations

import pytest
import torch

from tests.ir.programs import N, small
from torchsmith.errors import Unsupported
from torchsmith.ir.graph import Value
from torchsmith.ir.types import TensorType, shape_under, type_of
from torchsmith.ops.unary import Unary


def test_values_are_compared_by_identity() -> None:
    type = TensorType((2,), torch.float32)
    assert Value("a", type) != Value("a", type) and len({Value("a", type), Value("a", type)}) == 2


def test_users_and_values() -> None:
    graph = small()
    users = graph.users()
    (x,), (sigmoid, mul, reduce) = graph.inputs, graph.nodes
    assert users[x] == [sigmoid] and users[mul.outputs[0]] == [reduce] and users[reduce.outputs[0]] == []
    assert [value.name for value in graph.values()] == ["x", "two", "unary", "binary", "reduce"]
    assert repr(sigmoid) == "unary = Unary[sigmoid](x)" and repr(x) == "%x: f32[n, 6]"


def test_types() -> None:
    type = TensorType((N, 3), torch.bfloat16)
    assert str(type) == "bf16[n, 3]" and type.rank == 2 and not type.is_static and type.numel == 3 * N
    assert type.matches(TensorType((N + 0, 3), torch.bfloat16)) and not type.matches(type.with_dtype(torch.float32))
    assert not type.matches(type.with_shape(N, 3, 1)) and type.with_shape(2).is_static
    assert shape_under(type, {"n": 5}) == (5, 3)
    assert type_of(torch.zeros(2, 0, dtype=torch.int32)) == TensorType((2, 0), torch.int32)


def test_ops_are_values() -> None:
    assert Unary("relu") == Unary("relu") and hash(Unary("relu")) == hash(Unary("relu")) and Unary("relu") != Unary("neg")
    with pytest.raises(Unsupported, match="takes a floating dtype"):
        Unary("sigmoid").infer(TensorType((2,), torch.int64))
