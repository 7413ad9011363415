"""Engines take their nodes' places, and all else of a program stays."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tests.runtime.toy import dims, hybrid, nodes_of, segment_of
from torchsmith import Input
from torchsmith.errors import BuildError
from torchsmith.partition.splice import splice
from torchsmith.testing.pipeline import Pipeline

ENGINE = torch.ops.torchsmith.execute_engine.default


class Net(nn.Module):
    """Chain of nodes: linear, relu, sin, add, tanh, view; `scale` and `table` are used outside what the tests replace."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.register_buffer("scale", torch.full((6,), 0.5))
        self.table = torch.arange(6.0)

    def forward(self, x: Tensor, *, flag: bool = True) -> dict[str, Any]:
        hidden = torch.relu(self.linear(x))
        wave = torch.sin(hidden) * self.scale
        out = torch.tanh(hidden + wave + self.table)
        return {"out": out.view(-1), "hidden": hidden, "size": x.shape[0]}


def exported(dynamic: bool = False, **kwargs: Any) -> ExportedProgram:
    shapes = {"x": {0: Dim("batch", min=1, max=9)}, "flag": None} if dynamic else None
    return export(Net().eval(), (torch.randn(3, 4),), {"flag": True}, dynamic_shapes=shapes, **kwargs)


def check(program: ExportedProgram, spliced: ExportedProgram, *shapes: tuple[int, ...]) -> None:
    """Same results as the original, fake values that agree with real ones."""
    for shape in shapes:
        x = torch.randn(*shape)
        torch.testing.assert_close(spliced.module()(x, flag=True), program.module()(x, flag=True))
    for node in spliced.graph.nodes:
        if node.op == "call_function" and node.target is not ENGINE:
            assert "val" in node.meta, node.format_node()
    spliced.validate()


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_engine_for_everything(dynamic: bool) -> None:
    program = exported(dynamic)
    spliced = splice(program, [segment_of(program, [n for n in nodes_of(program) if "sym" not in n.name])])
    check(program, spliced, *([(3, 4), (1, 4), (9, 4)] if dynamic else [(3, 4)]))
    assert [n.target for n in spliced.graph.nodes if n.op == "call_function" and n.target is not operator.getitem].count(
        ENGINE
    ) == 1
    assert not spliced.state_dict and list(spliced.constants) == ["engine_0"]
    assert spliced.range_constraints == program.range_constraints
    assert spliced.call_spec == program.call_spec


@pytest.mark.parametrize("dynamic", [False, True])
def test_engines_that_feed_pytorch_and_each_other(dynamic: bool) -> None:
    program = exported(dynamic)
    spliced = splice(
        program, [segment_of(program, nodes_of(program, *names)) for names in (("linear", "relu"), ("add", "add_1", "tanh"))]
    )
    check(program, spliced, *([(3, 4), (1, 4), (9, 4)] if dynamic else [(3, 4)]))
    assert sum(n.target is ENGINE for n in spliced.graph.nodes) == 2
    assert list(spliced.state_dict) == ["scale"] and sorted(spliced.constants) == ["engine_0", "engine_1"]
    old = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "call_function"}
    for node in spliced.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], Tensor):
            assert dims(node.meta["val"]) == dims(old[node.name])


def test_the_program_passed_in_stays_as_it_is() -> None:
    program = exported()
    before = str(program), dict(program.state_dict), dict(program.constants), [dict(n.meta) for n in program.graph.nodes]
    splice(program, [segment_of(program, nodes_of(program, "linear", "relu"))])
    after = str(program), dict(program.state_dict), dict(program.constants), [dict(n.meta) for n in program.graph.nodes]
    assert all(a.keys() == b.keys() and all(a[k] is b[k] for k in a) for a, b in zip(before[3], after[3], strict=True))
    assert before[0] == after[0] and before[1].keys() == after[1].keys() and before[2].keys() == after[2].keys()


def test_without_segments_it_is_a_copy() -> None:
    program = exported()
    spliced = splice(program, [])
    check(program, spliced, (3, 4))
    assert spliced.graph is not program.graph and list(spliced.state_dict) == list(program.state_dict)


def test_what_uses_an_early_output_waits_for_the_whole_segment() -> None:
    class Interleaved(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            early = torch.relu(x)  # in the engine
            outside = torch.sin(early)  # uses it before the engine is complete
            other = torch.cos(x)  # feeds the engine late
            return outside, torch.tanh(early + other)

    program = export(Interleaved(), (torch.randn(3),))
    spliced = splice(program, [segment_of(program, nodes_of(program, "relu", "add", "tanh"))])
    x = torch.randn(3)
    torch.testing.assert_close(spliced.module()(x), program.module()(x))


class Shifted(nn.Module):
    """Causal language models tell where documents begin so: a size of what the engine itself computes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.diff(x.sin(), dim=1, prepend=x[:, :1] - 1).cumsum(1).relu()


def test_an_engine_waits_for_no_size_of_its_own() -> None:
    pipeline = Pipeline(Shifted(), Input(min_shape=(2, 4), opt_shape=(2, 8), max_shape=(2, 32)))
    pipeline.capture().lower().partition().build().whole()
    for length in (4, 7, 32):
        pipeline.matches((torch.randn(2, length),))


def test_a_circle_is_refused() -> None:
    class Circle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) + torch.sin(torch.relu(x))

    program = export(Circle(), (torch.randn(3),))
    relu, relu_1, sin, add = nodes_of(program)
    assert [n.name for n in (relu, relu_1, sin, add)] == ["relu", "relu_1", "sin", "add"]
    with pytest.raises(BuildError, match="wait for their own outputs"):
        splice(program, [([relu, relu_1, add], [sin], [relu_1, add], torch.zeros(1, dtype=torch.uint8), "{}")])


def test_writes_keep_their_place() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            before = self.count * 2
            self.count.add_(1)
            return before + torch.relu(x), self.count * 3

    program = export(Counter(), (torch.randn(3),))
    spliced = splice(program, [segment_of(program, nodes_of(program, "relu"))])
    x = torch.ones(3)
    run = spliced.module()
    assert [o.tolist() for o in run(x)] == [[1.0] * 3, [3.0] * 3]
    assert [o.tolist() for o in run(x)] == [[3.0] * 3, [6.0] * 3]
    program.state_dict["count"].zero_()
    functional = program.run_decompositions({})
    mutated = splice(functional, [segment_of(functional, nodes_of(functional, "relu"))])
    assert [s.kind.name for s in mutated.graph_signature.output_specs] == ["BUFFER_MUTATION", "USER_OUTPUT", "USER_OUTPUT"]
    run = mutated.module()
    run(x)
    assert [o.tolist() for o in run(x)] == [[3.0] * 3, [6.0] * 3]


def test_a_view_of_an_engine_output_works_whatever_its_strides() -> None:
    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(x)
            return torch.sin(x.to(memory_format=torch.channels_last)).permute(0, 2, 3, 1).view(2, -1)

    program = export(Strided(), (torch.randn(2, 3, 4, 5),))
    *engine, _permute, view = (n for n in nodes_of(program) if "assert" not in n.name)
    assert view.target is torch.ops.aten.view.default and not engine[-1].meta["val"].is_contiguous()
    spliced = splice(program, [segment_of(program, engine)])
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(spliced.module()(x), program.module()(x))


def test_control_flow_keeps_its_graphs() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t * 2, (x,)))

    program = export(Branches(), (torch.randn(3),))
    spliced = splice(program, [segment_of(program, nodes_of(program, "relu"))])
    for x in (torch.ones(3), -torch.ones(3)):
        torch.testing.assert_close(spliced.module()(x), program.module()(x))


def test_a_model_without_inputs() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self) -> Tensor:
            return torch.relu(self.weight) + 1

    program = hybrid(Constant(), ())
    assert program.module()().tolist() == [2.0, 2.0, 2.0]


def test_an_engine_that_gives_something_else_is_refused() -> None:
    program = exported()
    nodes, inputs, outputs, engine, spec = segment_of(program, nodes_of(program, "linear", "relu"))
    with pytest.raises(BuildError, match=r"torch.float64 of shape \(3, 6\) for relu"):
        splice(program, [(nodes, inputs, outputs, engine, spec.replace('"float32"}], "dev', '"float64"}], "dev'))])
    with pytest.raises(BuildError, match=r"shape \(3, 7\) for relu, and the program has torch.float32 of shape \(3, 6\)"):
        splice(program, [(nodes, inputs, outputs, engine, spec.replace("[3, 6]", "[3, 7]"))])
