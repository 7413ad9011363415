"""In-place ops become functional, with the same results, views and inputs included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from tests.lower.programs import HOW, agrees, applied, exported, ops
from torchsmith.lower.functionalize import functional, functionalize

X = torch.arange(12.0).reshape(3, 4) - 5


def never(*_: Any) -> ExportedProgram:
    raise AssertionError("traced the program again")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test whose program needs more than the rewriting of single ops."""
    monkeypatch.setattr(ExportedProgram, "run_decompositions", never)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: F.relu(x + 1, inplace=True), ["add", "relu"]),
        (lambda x: F.silu((x + 1).reshape(4, 3), inplace=True) * 2, ["add", "reshape", "silu", "mul"]),
        (lambda x: (x * 2).mul_(3).add_(x).clamp_(0, 9), ["mul", "mul", "add", "clamp"]),
        (lambda x: torch.zeros(3, 4).copy_(x), ["zeros", "copy"]),
        (lambda x: x.clone().masked_fill_(x > 0, 1.5), ["clone", "gt", "masked_fill"]),
        (lambda x: x.clone().index_put_((torch.tensor([0, 2]),), torch.tensor(1.0)), None),
        (lambda x: (x + 1).detach_().sigmoid_(), ["add", "sigmoid"]),
        (lambda x: (y := x + 1, y.relu_())[1] + y, ["add", "relu", "add"]),  # the later use of y sees the relu
        (lambda x: (y := x + 1, z := y * 2, y.relu_(), z)[3], None),  # the earlier one does not
    ],
)
def test_a_fresh_value_is_rewritten(function: Callable[..., Any], expected: list[str] | None) -> None:
    program = applied(functionalize, exported(function, X))
    assert not any(name.endswith("_") for name in ops(program))
    if expected is not None:
        assert ops(program) == expected
    agrees(program, function, X)


@pytest.mark.usefixtures("quick")
def test_the_dtype_stays_where_the_functional_op_would_promote() -> None:
    def function(x: Tensor) -> Tensor:
        return (x.half() * 2).add_(x)

    program = applied(functionalize, exported(function, X))
    assert ops(program)[-2:] == ["add", "to"]
    agrees(program, function, X)


def slice_assign(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 7
    return y


def write_through_a_view(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    row = y[1]
    row.add_(1)
    return y, row


def write_under_a_view(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    flat = y.view(-1)
    y.mul_(3)
    return flat, y


def write_through_dropout(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    flat = y.view(-1)
    z = F.dropout(y, training=False)  # the same tensor, whatever the schema says
    z.add_(1)
    return flat, z


def write_to_the_input(x: Tensor) -> Tensor:
    x.mul_(2)
    return x + 1


def write_to_a_view_of_the_input(x: Tensor) -> Tensor:
    x.t()[0].relu_()
    return x.sum(0)


@pytest.mark.parametrize(
    "function",
    [
        slice_assign,
        write_through_a_view,
        write_under_a_view,
        write_through_dropout,
        write_to_the_input,
        write_to_a_view_of_the_input,
    ],
)
def test_shared_memory_is_traced_again(function: Callable[..., Any]) -> None:
    program = exported(function, X)
    assert not functional(program.graph)
    program = applied(functionalize, program)
    assert not any(name.endswith("_") for name in ops(program))
    agrees(program, function, X)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls.sum()


def test_writes_to_buffers_are_named_by_the_signature() -> None:
    program = applied(functionalize, exported(Counter(), X))
    assert program.graph_signature.buffers_to_mutate == {program.graph_signature.output_specs[0].arg.name: "calls"}
    agrees(program, Counter(), X)


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=True)


def test_the_statistics_of_a_batch_norm_in_training_are_writes_too() -> None:
    program = exported(Statistics(), X)
    assert not functional(program.graph)
    program = applied(functionalize, program)
    assert set(program.graph_signature.buffers_to_mutate.values()) == {"mean", "var"}
    agrees(program, Statistics(), X)


def test_batch_sizes_stay_symbolic() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = 1
        return F.relu(y, inplace=True)

    program = applied(functionalize, exported(function, X, dynamic=({0: torch.export.Dim("n", min=1, max=9)},)))
    agrees(program, function, torch.randn(7, 4))


def test_source_lines_stay() -> None:
    program = applied(functionalize, exported(nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True)), X))
    first, second = (n.meta["stack_trace"] for n in program.graph.nodes if "relu" in str(n.target))
    assert first == second and "activation.py" in first


@torch.library.custom_op("torchsmith_test::fill_rows", mutates_args={"x"})
def fill_rows(x: Tensor, value: float) -> None:
    x.fill_(value)


def test_a_custom_op_that_writes() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        fill_rows(y, 3.0)
        return y + 1

    program = functionalize(exported(function, X), HOW)
    agrees(program, function, X)


# Random programs over a handful of tensors, all of shape (4, 4), that hold views of one another.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda x: x.t(),
    "view": lambda x: x.reshape(2, 8).reshape(4, 4),
    "flip halves": lambda x: torch.cat([x[2:], x[:2]]),
    "dropout": lambda x: F.dropout(x, training=False),
    "detach": lambda x: x.detach(),
    "double": lambda x: x * 2,
    "contiguous": lambda x: x.contiguous(),
}
WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add_": lambda x, y: x.add_(y.clone()),
    "relu_": lambda x, y: F.relu(x, inplace=True),
    "row": lambda x, y: x[1].add_(1),
    "column": lambda x, y: x[:, 2].mul_(y[0].clone()),
    "assign": lambda x, y: x.__setitem__((slice(1, 3),), y[:2].clone()),
    "copy_": lambda x, y: x.copy_(y.clone()),
    "fill": lambda x, y: x[0, 1:].fill_(3.0),
}
STEPS = st.lists(
    st.tuples(st.sampled_from([*VIEWS, *WRITES]), st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(STEPS)
def test_random_programs_with_views(steps: list[tuple[str, int, int]]) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        values = [x + 1, x * 3]
        for name, first, second in steps:
            a, b = values[first % len(values)], values[second % len(values)]
            if name in VIEWS:
                values.append(VIEWS[name](a))
            else:
                WRITES[name](a, b)
        return tuple(value + 0 for value in values)

    inputs = torch.arange(16.0).reshape(4, 4) - 7
    program = applied(functionalize, exported(function, inputs))
    assert not any(name.endswith("_") for name in ops(program))
    agrees(program, function, inputs)
