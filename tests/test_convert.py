"""From an exported program to our IR."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from torchsmith.convert import Converter, convert, origin_of, parameters_of, probe, ranges_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import symbol
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.verify import verify


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("scale", torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.relu(self.conv(x)) * self.scale).flatten(1)


def exported(module: nn.Module, *inputs: torch.Tensor, **options: object) -> ExportedProgram:
    with torch.no_grad():
        return export(module, inputs, **options)  # type: ignore[arg-type]


def whole(program: ExportedProgram) -> Graph:
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    return convert(program, inputs, nodes, output.args[0])


def test_a_program_becomes_a_graph_with_its_parameters_as_constants() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 5, 5)
    graph = whole(exported(net, x))
    verify(graph, "convert")
    assert {v.name for v in graph.constants} == {"p_conv_weight", "p_conv_bias", "b_scale"}
    torch.testing.assert_close(interpret(graph, [x])[0], net(x))


def test_symbolic_sizes_are_carried_with_their_ranges() -> None:
    net, x = Net().eval(), torch.randn(2, 3, 5, 5)
    graph = whole(exported(net, x, dynamic_shapes=({0: Dim("batch", min=1, max=16)},)))
    ((name, limits),) = graph.ranges.items()
    assert limits == (1, 16)
    assert graph.outputs[0].type.shape == (symbol(name), 100)
    for batch in (1, 7, 16):
        x = torch.randn(batch, 3, 5, 5)
        torch.testing.assert_close(interpret(graph, [x])[0], net(x))


def test_an_unlimited_size_has_no_upper_end() -> None:
    program = exported(Net().eval(), torch.randn(2, 3, 5, 5), dynamic_shapes=({0: Dim("batch")},))
    ((_, high),) = ranges_of(program).values()
    assert high is None


def test_an_op_without_a_converter_is_refused() -> None:
    program = exported(_Calls(torch.special.i0), torch.rand(3))
    (node,) = (n for n in program.graph.nodes if n.op == "call_function")
    with pytest.raises(Unsupported, match="no converter"):
        probe(Converter(program), node)


def test_a_data_dependent_size_is_refused() -> None:
    program = exported(_Calls(lambda x: x.nonzero()), torch.rand(3))
    node = next(n for n in program.graph.nodes if "nonzero" in str(n.target))
    with pytest.raises(Unsupported, match=r"no converter|depends on the data"):
        probe(Converter(program), node)


def test_origins_name_the_op_and_the_users_line() -> None:
    program = exported(Net().eval(), torch.randn(2, 3, 5, 5))
    node = next(n for n in program.graph.nodes if "relu" in str(n.target))
    assert origin_of(node).startswith("aten.relu.default at ")
    assert "test_convert.py" in origin_of(node)


def test_mutated_buffers_are_no_constants() -> None:
    program = exported(_Counter(), torch.rand(3)).run_decompositions({})  # which writes the mutation into the signature
    assert parameters_of(program) == {}


class _Calls(nn.Module):
    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)  # type: ignore[no-any-return]


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x + self.count
