"""Run a graph with its ops' references: slow, and the oracle of everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from torchsmith.errors import InvalidInput
from torchsmith.ir.dim import bind
from torchsmith.ir.graph import Graph, Node, Value

Observer = Callable[[Value, Tensor], None]


def bind_symbols(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, int]:
    """The number of every symbol, read off the inputs' shapes. Raises InvalidInput where a shape does not fit."""
    env: dict[str, int] = {}
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        if tensor.dim() != value.type.rank or tensor.dtype != value.type.dtype:
            raise InvalidInput(f"{value.name} is {value.type}; it got {tensor.dtype} of shape {tuple(tensor.shape)}")
        for wanted, size in zip(value.type.shape, tensor.shape, strict=True):
            if not isinstance(wanted, int) and wanted.is_Symbol:
                env.setdefault(str(wanted), size)
    for value, tensor in zip(graph.inputs, inputs, strict=True):
        if (wanted := bind(value.type.shape, env)) != tuple(tensor.shape):
            raise InvalidInput(f"{value.name} is {value.type}, with {env} that is {wanted}; it got {tuple(tensor.shape)}")
    return env


def interpret(graph: Graph, inputs: Sequence[Tensor], observe: Observer | None = None) -> list[Tensor]:
    """The graph's outputs for `inputs`. observe: called with every value that a node gives, in order."""
    env = bind_symbols(graph, inputs)
    tensors: dict[Value, Tensor] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    last_use = {value: index for index, node in enumerate(graph.nodes) for value in node.inputs}
    kept = set(graph.outputs)
    for index, node in enumerate(graph.nodes):
        for value, tensor in zip(node.outputs, run_node(node, [tensors[v] for v in node.inputs], env), strict=True):
            tensors[value] = tensor
            if observe:
                observe(value, tensor)
        for value in set(node.inputs):
            if last_use[value] == index and value not in kept:
                del tensors[value]
    return [tensors[value] for value in graph.outputs]


def run_node(node: Node, inputs: Sequence[Tensor], env: dict[str, int]) -> tuple[Tensor, ...]:
    """One node's outputs, checked against the types it promises."""
    given = node.op.bound(env).reference(*inputs)
    outputs = given if isinstance(given, tuple) else (given,)
    for value, tensor in zip(node.outputs, outputs, strict=True):
        promised = bind(value.type.shape, env)
        assert tensor.dtype == value.type.dtype and tuple(tensor.shape) == promised, (
            f"{node}: infer promised {value.type} ({promised}), reference gave {tensor.dtype} {tuple(tensor.shape)}"
        )
    return outputs
