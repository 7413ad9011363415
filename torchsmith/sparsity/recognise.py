"""Which matrix products of a graph have 2:4 weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from torchsmith.ir.graph import Graph, Node, Value
from torchsmith.ir.interpret import run_node
from torchsmith.ops.convolution import Convolution, ConvolutionTransposed
from torchsmith.ops.linear import Linear
from torchsmith.ops.matmul import MatMul
from torchsmith.sparsity.pattern import is_two_four


@dataclass(frozen=True, eq=False)
class MatrixWeight:
    """The constant operand of a matrix product or convolution.

    index: its place among the node's inputs. dim: the dimension that is summed over, where 2:4 counts. two_four: whether it is.
    """

    node: Node
    index: int
    dim: int
    two_four: bool

    @property
    def value(self) -> Value:
        return self.node.inputs[self.index]


def matrix_weights(graph: Graph) -> tuple[MatrixWeight, ...]:
    """The weights of every convolution, linear layer and matrix product with a constant, in the graph's order.

    What is computed from constants alone counts as one: the quantized and dequantized weights of an int8 layer, say.
    """
    known = _Constants(graph)
    return tuple(
        MatrixWeight(node, index, dim, is_two_four(known[node.inputs[index]], dim))
        for node in graph.nodes
        for index, dim in _operands(node)
        if known.has(node.inputs[index])
    )


def two_four_weights(graph: Graph) -> tuple[MatrixWeight, ...]:
    """Those of `matrix_weights` that are 2:4, and so can run on sparse tensor cores."""
    return tuple(weight for weight in matrix_weights(graph) if weight.two_four)


def _operands(node: Node) -> Iterator[tuple[int, int]]:
    """Inputs that may be weights, each with the dimension that is summed over."""
    match node.op:
        case Convolution() | Linear():
            yield 1, 1
        case ConvolutionTransposed():
            yield 1, 0
        case MatMul():
            yield 0, node.inputs[0].type.rank - 1
            yield 1, node.inputs[1].type.rank - 2


class _Constants:
    """The graph's constants, and what nodes compute from them alone, whatever the sizes are; evaluated when it is asked for."""

    def __init__(self, graph: Graph) -> None:
        self.tensors: dict[Value, Tensor] = dict(graph.constants)
        self.makers: dict[Value, Node] = {}
        for node in graph.nodes:
            if node.inputs and all(self.has(value) for value in node.inputs) and not node.op.symbols():
                self.makers.update(dict.fromkeys(node.outputs, node))

    def has(self, value: Value) -> bool:
        return value in self.tensors or value in self.makers

    def __getitem__(self, value: Value) -> Tensor:
        if value not in self.tensors:
            node = self.makers[value]
            outputs = run_node(node, [self[v] for v in node.inputs], {})
            self.tensors.update(zip(node.outputs, outputs, strict=True))
        return self.tensors[value]
