"""Which products of a graph have 2:4 weights."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.convert import convert
from torchsmith.ir.graph import Graph
from torchsmith.quantize.precision import reduce_precision
from torchsmith.sparsity import is_two_four, sparsify, two_four_mask
from torchsmith.sparsity.recognise import matrix_weights, two_four_weights
from torchsmith.testing.pipeline import Pipeline


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    road = Pipeline(model.eval(), *inputs, backend="reference").capture().lower().partition().whole()
    (segment,) = road.partitioned.segments
    return convert(road.partitioned.program, segment.inputs, segment.nodes, segment.outputs)


def pruned(*shape: int, dim: int) -> Tensor:
    weight = torch.randn(*shape)
    return weight * two_four_mask(weight, dim)


class Products(nn.Module):
    """Weights on either side of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(pruned(3, 8, dim=1))
        self.right = nn.Parameter(pruned(16, 3, dim=0))
        self.dense = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.left @ x @ self.right + self.dense @ x @ self.right


def test_convolutions_and_linear_layers_behind_batch_norm_and_flattening() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        nn.Linear(16, 16),
    )
    x = torch.randn(2, 3, 5, 5)
    assert two_four_weights(graph_of(model, x)) == ()
    graph = graph_of(sparsify(model, skip=["6"]), x)
    assert [w.two_four for w in matrix_weights(graph)] == [False, True, False]
    (found,) = two_four_weights(graph)
    assert (found.index, found.dim, found.value.type.shape) == (1, 1, (16, 16, 3, 3))
    assert is_two_four(graph.constants[found.value])


def test_either_side_of_a_product() -> None:
    found = matrix_weights(graph_of(Products(), torch.randn(8, 16)))
    assert sorted((w.index, w.dim, w.two_four) for w in found) == [(0, 1, False), (0, 1, True), (1, 0, True), (1, 0, True)]


def test_transposed_convolutions_sum_over_their_first_dimension() -> None:
    layer = nn.ConvTranspose2d(8, 6, 3)
    layer.weight = nn.Parameter(pruned(8, 6, 3, 3, dim=0))
    assert [(w.dim, w.two_four) for w in matrix_weights(graph_of(layer, torch.randn(1, 8, 4, 4)))] == [(0, True)]


def test_products_of_activations_have_none() -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(-1, -2)

    assert matrix_weights(graph_of(Scores(), torch.randn(2, 8, 8))) == ()


def test_in_half_precision_too() -> None:
    model = sparsify(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)))
    graph = reduce_precision(graph_of(model, torch.randn(2, 32)), torch.float16)
    assert [w.value.type.dtype for w in two_four_weights(graph)] == [torch.float16] * 2


def test_weights_that_are_computed_from_constants() -> None:
    class Late(nn.Module):
        """What the lowering leaves: an expanded constant."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(pruned(1, 32, dim=1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.expand(4096, 32))

    graph = graph_of(Late(), torch.randn(2, 32))
    (found,) = two_four_weights(graph)
    assert found.value not in graph.constants


def test_fake_quantized_weights_stay_two_four() -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(pruned(16, 32, dim=1))
            self.register_buffer("scale", self.weight.detach().abs().amax(1) / 127)
            self.register_buffer("zero", torch.zeros(16, dtype=torch.int32))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
            weight = torch.fake_quantize_per_channel_affine(self.weight, self.scale, self.zero, 0, -127, 127)
            return nn.functional.linear(x, weight)

    graph = graph_of(Quantized(), torch.randn(2, 32))
    (found,) = two_four_weights(graph)
    assert found.value not in graph.constants


def test_pruned_models_stay_so_through_post_training_quantization() -> None:
    model = sparsify(nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()).eval())
    x = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    fast = torchsmith.compile(model, inputs=[x[0]], enabled_precisions={torch.int8}, calibrator=x, min_block_size=1)
    (segment,) = torchsmith.explain(fast).segments
    assert (segment["two_four_weights"], segment["weights"]) == (1, 2)


def test_a_large_model_takes_no_time_to_look_at() -> None:
    model = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(4)])
    graph = graph_of(model, torch.randn(1, 2048))
    started = time.perf_counter()
    assert two_four_weights(graph) == ()
    assert time.perf_counter() - started < 1  # dense weights are told by their first rows


@pytest.mark.parametrize("pruning", [False, True])
def test_explain_has_a_column_where_there_are_any(pruning: bool) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 7)).eval()
    model = sparsify(model) if pruning else model
    found = torchsmith.explain(torchsmith.compile(model, inputs=[torch.randn(2, 32)], min_block_size=1))
    assert ("2:4 weights" in str(found)) == pruning and ("1 of 2" in str(found)) == pruning
    assert found.segments[0]["weights"] == 2
