from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.backends.cuda.problems import layers, placed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import View
from torchsmith.backends.cuda.signature import digest, signature
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.types import TensorType
from torchsmith.ops.binary import Binary
from torchsmith.ops.quantize import dequantize, quantize


def signatures(graph: Graph, at: dict[str, int] | None = None) -> list[str]:
    graph = fuse(graph)
    views, packed = placed(graph)
    return [signature(n, views, packed.tensors.get, at or {}) for n in graph.nodes]


def test_layers_of_one_shape_are_one_problem_whatever_their_names() -> None:
    first, second, third = signatures(layers(3))
    assert first == second == third
    assert signatures(layers(1)) == [first] and len(digest(first)) == 32


@pytest.mark.parametrize("other", [layers(1, rows=65), layers(1, width=48), layers(1, dtype=torch.bfloat16)])
def test_other_shapes_and_dtypes_are_other_problems(other: Graph) -> None:
    assert signatures(other) != signatures(layers(1))


def test_strides_alignment_and_constants_matter() -> None:
    graph = fuse(layers(1))
    views, packed = placed(graph)
    (node,) = graph.nodes
    x, _ = node.inputs
    texts = {
        "as it is": signature(node, views, packed.tensors.get, {}),
        "strides": signature(node, {**views, x: View(x, (64, 1))}, packed.tensors.get, {}),
        "offset": signature(node, {**views, x: View(x, (32, 1), 3)}, packed.tensors.get, {}),
        "no constant": signature(node, views, lambda value: None, {}),
    }
    assert len(set(texts.values())) == len(texts)
    aligned = signature(node, {**views, x: View(x, (32, 1), 1024)}, packed.tensors.get, {})
    assert aligned == texts["as it is"], "an offset that is as well aligned is no other problem"


def test_numbers_are_part_of_it_and_tensors_are_not() -> None:
    def scaled(by: torch.Tensor) -> str:
        with Builder() as b:
            x = b.input(TensorType((4, 4), torch.float32))
            graph = b.finish([Binary("mul")(x, b.constant(by))])
        return signatures(graph)[0]

    assert scaled(torch.tensor(2.0)) != scaled(torch.tensor(3.0))
    assert scaled(torch.full((4,), 2.0)) == scaled(torch.full((4,), 3.0))


def test_scales_and_zero_points_are_no_other_problem() -> None:
    def stepped(scale: float, zero_point: int, exponent: float = 3.0) -> str:
        with Builder() as b:
            x = b.input(TensorType((4, 4), torch.float32))
            y = quantize(Binary("pow")(x, b.constant(torch.tensor(exponent))), scale, zero_point, None, -128, 127, torch.int8)
            graph = b.finish([dequantize(y, scale, zero_point, None, torch.float32)])
        return "\n".join(signatures(graph))

    assert stepped(0.02, 7) == stepped(0.03, -9)
    assert stepped(0.02, 7) != stepped(0.02, 0), "without a zero point there is less to do"
    assert stepped(0.02, 7) != stepped(0.02, 7, 2.0)


def test_dynamic_sizes_have_no_names_and_are_bound() -> None:
    first = signatures(layers(1, rows="s0"), {"s0": 8})
    assert first == signatures(layers(1, rows="s77"), {"s77": 8})
    assert first != signatures(layers(1, rows="s0"), {"s0": 9}) and first != signatures(layers(1, rows=8))


def test_values_that_are_the_same_are_told_from_values_that_are_alike() -> None:
    def added(same: bool) -> str:
        with Builder() as b:
            x, y = (b.input(TensorType((4, 4), torch.float32)) for _ in range(2))
            graph = b.finish([Binary("add")(x, x if same else y)])
        return signatures(dataclasses.replace(graph))[0]

    assert added(True) != added(False)
