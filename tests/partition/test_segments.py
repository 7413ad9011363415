"""Which nodes go where, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram, export

from torchsmith.config import PartitionConfig
from torchsmith.errors import FullCompilationRequired
from torchsmith.ir.graph import Node
from torchsmith.partition.segments import Partitioned, partition

EACH = PartitionConfig(min_block_size=1)


class Calls(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs)


def exported(function: Callable[..., object], *inputs: torch.Tensor, **options: object) -> ExportedProgram:
    with torch.no_grad():
        return export(Calls(function), inputs, **options)  # type: ignore[arg-type]


def takes_all(node: Node) -> str | None:
    return None


def refuses(function: str) -> Callable[[Node], str | None]:
    return lambda node: f"no {function} here" if getattr(node.op, "function", "") == function else None


def ops(partitioned: Partitioned) -> list[list[str]]:
    return [[str(n.target).split(".")[1] for n in s.nodes] for s in partitioned.segments]


def test_a_model_that_an_engine_takes_is_one_segment() -> None:
    program = exported(lambda x: torch.relu(x) * 2 + 1, torch.rand(3))
    result = partition(program, takes_all, PartitionConfig())
    assert ops(result) == [["relu", "mul", "add"]]  # below min_block_size, and whole
    assert result.refusals == ()


def test_a_refused_node_in_the_middle_splits_the_model_and_keeps_its_reason() -> None:
    program = exported(lambda x: torch.relu(torch.tanh(torch.relu(x))), torch.rand(3))
    result = partition(program, refuses("tanh"), EACH)
    assert ops(result) == [["relu"], ["relu"]]
    (refusal,) = result.refusals
    assert (refusal.op, refusal.reason) == ("aten.tanh.default", "no tanh here")
    assert "test_segments.py" in refusal.where


def test_branches_around_a_refused_node_join_the_segments_they_can() -> None:
    def diamond(x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(x)
        return torch.tanh(a) + torch.sigmoid(a)

    result = partition(exported(diamond, torch.rand(3)), refuses("tanh"), EACH)
    assert ops(result) == [["relu", "sigmoid"], ["add"]]
    first, second = result.segments
    assert [n.name for n in first.outputs] == ["relu", "sigmoid"]
    assert {n.name for n in second.inputs} == {"tanh", "sigmoid"}


def test_small_blocks_stay_in_pytorch_and_say_so() -> None:
    program = exported(lambda x: torch.relu(torch.tanh(torch.relu(x))), torch.rand(3))
    result = partition(program, refuses("tanh"), PartitionConfig(min_block_size=2))
    assert result.segments == ()
    assert sorted(r.reason for r in result.refusals) == ["its block has 1 ops, and min_block_size is 2"] * 2 + ["no tanh here"]


@pytest.mark.parametrize("name", ["aten.tanh.default", "aten.tanh", "aten::tanh", "torch.ops.aten.tanh.default"])
def test_the_user_keeps_an_op_in_pytorch_by_any_of_its_names(name: str) -> None:
    program = exported(lambda x: torch.relu(torch.tanh(x)), torch.rand(3))
    result = partition(program, takes_all, PartitionConfig(min_block_size=1, torch_executed_ops=frozenset({name})))
    assert [(r.op, r.reason) for r in result.refusals] == [("aten.tanh.default", "torch_executed_ops names it")]


def test_full_compilation_lists_what_is_in_its_way() -> None:
    program = exported(lambda x: torch.relu(torch.tanh(x)), torch.rand(3))
    with pytest.raises(FullCompilationRequired, match=r"1 ops would stay in PyTorch:\n  aten\.tanh\.default: no tanh here"):
        partition(program, refuses("tanh"), PartitionConfig(require_full_compilation=True))


def test_a_segment_that_sees_no_symbol_is_given_an_input_that_shows_it() -> None:
    program = exported(
        lambda x: torch.relu(torch.tanh(x.reshape(-1))), torch.rand(8, 3), dynamic_shapes=(({0: Dim("n", max=32)},),)
    )
    result = partition(program, refuses("tanh"), EACH)
    inputs = {n.name for n in result.segments[-1].inputs}
    assert "tanh" in inputs and len(inputs) == 2  # the program's own input shows n


class Weighted(nn.Module):
    """A product before and after a node that is refused; both weights are rounded by the model."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = torch.fake_quantize_per_tensor_affine(self.before.weight, 0.01, 0, -128, 127)
        x = torch.tanh(nn.functional.linear(x, rounded))
        after = rounded if self.shared else torch.fake_quantize_per_tensor_affine(self.after.weight, 0.01, 0, -128, 127)
        return nn.functional.linear(x, after)


def test_what_is_made_of_constants_goes_with_what_takes_it() -> None:
    result = partition(export(Weighted(), (torch.rand(2, 4),)), refuses("tanh"), EACH)
    assert ops(result) == [["fake_quantize_per_tensor_affine", "linear"]] * 2
    assert [len(segment.inputs) for segment in result.segments] == [1, 1]
    assert [len(segment.outputs) for segment in result.segments] == [1, 1]


def test_what_two_segments_take_is_made_in_each() -> None:
    model, x = Weighted(shared=True), torch.rand(2, 4)
    program = export(model, (x,))
    before = str(program.graph)
    result = partition(program, refuses("tanh"), EACH)
    assert ops(result) == [["fake_quantize_per_tensor_affine", "linear"]] * 2
    assert [len(segment.inputs) for segment in result.segments] == [1, 1]
    assert str(program.graph) == before
    torch.testing.assert_close(result.program.module()(x), model(x))


def test_constants_that_pytorch_takes_come_before_it() -> None:
    weight = torch.rand(4)
    program = exported(lambda x: torch.relu(torch.tanh(torch.relu(weight)) * x), torch.rand(4))
    result = partition(program, refuses("tanh"), EACH)
    assert ops(result) == [["relu"], ["mul", "relu"]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_segments_never_depend_on_themselves(data: st.DataObject) -> None:
    """Random graphs: contracting every segment to one node leaves no cycle, and every node lies in one place."""
    count = data.draw(st.integers(2, 12))
    picks = [(data.draw(st.integers(0, i)), data.draw(st.integers(0, i)), data.draw(st.booleans())) for i in range(count)]

    def random_graph(x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for a, b, refused in picks:
            values.append(torch.atan2(values[a], values[b]) if refused else values[a] + values[b])
        return values[-1] + values[len(values) // 2]

    program = exported(random_graph, torch.rand(3))
    result = partition(program, refuses("atan2"), EACH)
    place = {node: index for index, s in enumerate(result.segments) for node in s.nodes}
    assert len(place) == sum(len(s.nodes) for s in result.segments)
    edges: dict[object, set[object]] = {}
    for node in program.graph.nodes:
        here = place.get(node, node)
        for source in node.all_input_nodes:
            there = place.get(source, source)
            if there != here:
                edges.setdefault(here, set()).add(there)
    done: set[object] = set()

    def visit(item: object, path: tuple[object, ...]) -> None:
        assert item not in path, f"{item} depends on itself"
        if item not in done:
            for source in edges.get(item, ()):
                visit(source, (*path, item))
            done.add(item)

    for item in list(edges):
        visit(item, ())
