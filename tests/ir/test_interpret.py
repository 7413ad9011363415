"""Running graphs by the references of their ops."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.ir.programs import N, small
from torchsmith.errors import InvalidInput
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Value
from torchsmith.ir.interpret import bind_symbols, interpret
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType
from torchsmith.ops.reshape import Reshape
from torchsmith.ops.unary import Unary


@pytest.mark.parametrize("rows", [1, 5, 16])
def test_symbols_are_read_off_the_inputs(rows: int) -> None:
    x = torch.randn(rows, 6)
    y, z = interpret(small(), [x])
    assert torch.equal(y, x.sigmoid() * 2)
    torch.testing.assert_close(z, y.sum())


def test_symbolic_attributes_become_numbers() -> None:
    with Builder({"n": (1, 9)}) as builder:
        y = Reshape((2 * N, 3))(builder.input(TensorType((N, 6), torch.float32)))
    (found,) = interpret(builder.finish([y]), [torch.zeros(4, 6)])
    assert found.shape == (8, 3)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InvalidInput, match=r"x is f32\[n, 6\]; it got torch.float64 of shape \(2, 6\)"):
        interpret(small(), [torch.zeros(2, 6, dtype=torch.float64)])
    with pytest.raises(InvalidInput, match=r"it got torch.float32 of shape \(6,\)"):
        interpret(small(), [torch.zeros(6)])
    with pytest.raises(InvalidInput, match=r"with \{'n': 2\} that is \(2, 6\); it got \(2, 7\)"):
        interpret(small(), [torch.zeros(2, 7)])


def test_one_symbol_in_two_inputs_must_agree() -> None:
    with Builder({"n": (1, 9)}) as builder:
        x, y = (builder.input(TensorType(shape, torch.float32)) for shape in ((2 * N,), (N,)))
    graph = builder.finish([x, y])
    assert bind_symbols(graph, [torch.zeros(6), torch.zeros(3)]) == {"n": 3}
    with pytest.raises(InvalidInput):
        bind_symbols(graph, [torch.zeros(7), torch.zeros(3)])


def test_values_can_be_observed() -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        seen[value.name] = tuple(tensor.shape)

    interpret(small(), [torch.zeros(3, 6)], observe)
    assert seen == {"unary": (3, 6), "binary": (3, 6), "reduce": ()}


def test_outputs_may_be_inputs_constants_and_repeat() -> None:
    with Builder() as builder:
        x = builder.input(TensorType((2,), torch.float32))
        y, c = Unary("neg")(x), builder.constant(torch.ones(1))
    found = interpret(builder.finish([y, x, c, y]), [torch.tensor([1.0, 2.0])])
    assert [t.tolist() for t in found] == [[-1, -2], [1, 2], [1], [-1, -2]]


@dataclass(frozen=True)
class Liar(Op):
    """Promises float32 and gives float64."""

    def infer(self, x: TensorType) -> TensorType:
        return x

    def reference(self, x: Tensor) -> Tensor:
        return x.double()


def test_a_reference_that_breaks_its_promise_is_found() -> None:
    with Builder() as builder:
        y = Liar()(builder.input(TensorType((2,), torch.float32)))
    with pytest.raises(AssertionError, match=r"infer promised f32\[2\] .*, reference gave torch.float64"):
        interpret(builder.finish([y]), [torch.zeros(2)])
