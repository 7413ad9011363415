"""One op in a TensorRT network: what it computes, its edges, and that it builds. To try an emitter:

check(Softmax(1), torch.rand(3, 5))
check(Linear(), x, weight, bias, constants=(1, 2))
check(Softmax(1), torch.rand(3, 5), shapes=[("n", 5)], more=[[torch.rand(7, 5)]])
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.backends.tensorrt.evaluate import evaluate
from tests.backends.tensorrt.layers import DTYPES
from torchsmith.backends.tensorrt.build import profile_of
from torchsmith.backends.tensorrt.emit import Emission, edge_names
from torchsmith.backends.tensorrt.library import builder, log, said
from torchsmith.ir.builder import Builder
from torchsmith.ir.dim import Dim, bind, symbol, symbols_in
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import bind_symbols, interpret
from torchsmith.ir.op import Op
from torchsmith.ir.types import TensorType, type_of
from torchsmith.ir.widen import widened
from torchsmith.testing.compare import check_close

Sizes = Sequence["str | Dim"]


def check(
    op: Op,
    *inputs: Tensor,
    constants: Collection[int] = (),
    shapes: Sequence[Sizes | None] = (),
    more: Sequence[Sequence[Tensor]] = (),
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
    build: bool = True,
) -> None:
    """Emit the op alone, evaluate it, compare it with its reference in float64, and build it.

    constants: the numbers of the inputs that the graph knows, as it does weights. shapes: for each input, or for the first
    ones, its shape with symbols (or their names) as sizes, or None; other inputs' sizes are numbers. more: all inputs again, of
    other sizes. ranges: of the symbols; 1 to 64 where not said. Raises Unsupported where the op is refused, and AssertionError.
    """
    check_graph(graph_of(op, inputs, constants, shapes, ranges), *(_moving(v, constants) for v in (inputs, *more)), build=build)


def graph_of(
    op: Op,
    inputs: Sequence[Tensor],
    constants: Collection[int] = (),
    shapes: Sequence[Sizes | None] = (),
    ranges: Mapping[str, tuple[int, int | None]] | None = None,
) -> Graph:
    """The op in a graph of its own."""
    wanted = [None if s is None else tuple(symbol(n) if isinstance(n, str) else n for n in s) for s in shapes]
    wanted += [None] * (len(inputs) - len(wanted))
    names = sorted(set().union(*(symbols_in(s) for s in wanted if s is not None)))
    with Builder({name: (ranges or {}).get(name, (1, 64)) for name in names}) as b:
        values = [
            b.constant(t) if number in constants else b.input(type_of(t) if s is None else TensorType(s, t.dtype))
            for number, (t, s) in enumerate(zip(inputs, wanted, strict=True))
        ]
        results = op(*values)
        return b.finish(list(results) if isinstance(results, tuple) else [results])


def check_graph(graph: Graph, *given: Sequence[Tensor], build: bool = True) -> None:
    """The same of a whole graph, for each of several inputs."""
    log().forget()
    emission = Emission(graph)
    network = emission.emit_all()
    inputs, outputs = edge_names(graph)
    check_edges(graph, network)
    exact = widened(graph)
    for tensors in given:
        found = evaluate(network, dict(zip(inputs, tensors, strict=True)))
        env = bind_symbols(graph, tensors)
        wanted = interpret(exact, [t.double() if t.is_floating_point() else t for t in tensors])
        for name, value, want in zip(outputs, graph.outputs, wanted, strict=True):
            assert found[name].dtype == value.type.dtype, f"{name} is {found[name].dtype}, the graph says {value.type}"
            assert tuple(found[name].shape) == bind(value.type.shape, env)
            check_close(found[name], _storable(want, value.type.dtype), what=name)
    if build:
        assert built(graph, network), f"TensorRT cannot build {graph.nodes}: {said()}"


def check_edges(graph: Graph, network: Any) -> None:
    """The network's inputs and outputs have the graph's types and sizes, and the names that `edge_names` gives."""
    for names, values, count, get in zip(
        edge_names(graph),
        (graph.inputs, graph.outputs),
        (network.num_inputs, network.num_outputs),
        (network.get_input, network.get_output),
    ):
        tensors = [get(number) for number in range(count)]
        assert [t.name for t in tensors] == names
        for tensor, value in zip(tensors, values, strict=True):
            assert DTYPES[tensor.dtype.name] == value.type.dtype, f"{tensor.name} is {tensor.dtype}, the graph says {value.type}"
            assert len(tensor.shape) == value.type.rank, f"{tensor.name} is {tensor.shape}, the graph says {value.type}"
            for said_, size in zip(tensor.shape, value.type.shape, strict=True):
                assert said_ in ((size, -1) if isinstance(size, int) else (-1,)), (
                    f"{tensor.name} is {tensor.shape}, not {value.type}"
                )


def built(graph: Graph, network: Any) -> bytes | None:
    """An engine of the network, for TensorRT's own choice of GPUs; None where it cannot make one."""
    settings = builder().create_builder_config()
    if profile := profile_of(graph):
        settings.add_optimization_profile(profile)
    made = builder().build_serialized_network(network, settings)
    return None if made is None else bytes(made)


def _storable(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers too great for the dtype as infinities, and those too small for all of its digits as it holds them."""
    if not dtype.is_floating_point:
        return wide
    narrow = wide.to(dtype)
    return torch.where(narrow.isinf() | (narrow.abs() < torch.finfo(dtype).tiny), narrow.to(wide.dtype), wide)


def _moving(inputs: Sequence[Tensor], constants: Collection[int]) -> list[Tensor]:
    return [t for number, t in enumerate(inputs) if number not in constants]
