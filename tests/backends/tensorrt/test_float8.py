"""fp8 in TensorRT networks: pairs, weights, attention, and blocks of transformers that are calibrated for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.ir.builder import Builder, constant
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import TensorType
from torchsmith.ops.attention import Attention
from torchsmith.ops.linear import Linear
from torchsmith.ops.quantize import FP8, dequantize, fake_float8
from torchsmith.testing.compare import relative_error

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)

from tests.backends.tensorrt.checks import built, check_graph
from tests.backends.tensorrt.test_models import computed, engine_of, graphs, outputs_of
from tests.quantize.test_float8 import Block, batches
from tests.test_models import error
from torchsmith.backends.tensorrt.emit import Emission

assert graphs  # a fixture
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOATS = [F32, F16, BF16]


def made(types: Sequence[TensorType], function: Callable[..., Value]) -> Graph:
    with Builder() as b:
        return b.finish([function(*map(b.input, types))])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 2])
def test_pairs(dtype: torch.dtype, axis: int | None) -> None:
    def function(x: Value) -> Value:
        scale: Value | float = 0.0078125 if axis is None else constant(2.0 ** -torch.arange(5.0, 12.0)[: (4, 5, 7)[axis]])
        y: Value = fake_float8(x, scale, axis)
        return y

    check_graph(made([TensorType((4, 5, 7), dtype)], function), [(torch.randn(4, 5, 7) * 2).to(dtype)])


def test_a_number_alone() -> None:
    check_graph(made([TensorType((), F32)], lambda x: fake_float8(x, 0.5)), [torch.tensor(3.3)])


def test_numbers_that_fp8_does_not_have_are_limited() -> None:
    x = torch.tensor([1e6, -1e6, 449.0, 17.0, 19.0, 2.0**-10, 0.0])
    check_graph(made([TensorType((7,), F32)], lambda x: fake_float8(x, 1.0)), [x])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights_are_constants_of_fp8(dtype: torch.dtype) -> None:
    weight, steps = torch.randn(24, 16).to(FP8), torch.rand(24) * 0.01 + 0.01

    def function(x: Value) -> Value:
        rounded = dequantize(constant(weight, "weight"), constant(steps), None, 0, dtype)
        y: Value = Linear()(fake_float8(x, 0.0078125), rounded)
        return y

    graph = made([TensorType((2, 5, 16), dtype)], function)
    check_graph(graph, [torch.randn(2, 5, 16).to(dtype)])
    network = Emission(graph).emit_all()
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    assert Counter(layer.get_output(0).dtype.name for layer in layers)["FP8"] == 2  # the weight, and the rows


def attention(shapes: Sequence[tuple[int, ...]], causal: bool, dtype: torch.dtype = F32, masked: bool = False) -> Graph:
    def function(*given: Value) -> Value:
        y: Value = Attention(0.25, causal, FP8)(*(fake_float8(x, 0.0078125) for x in given[:3]), *given[3:])
        return y

    types = [TensorType(shape, dtype) for shape in shapes]
    mask = [TensorType((1, 1, shapes[0][-2], shapes[1][-2]), torch.bool)] if masked else []
    return made([*types, *mask], function)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(1, 2, 8, 16)] * 3, id="the layer"),
        pytest.param([(2, 8, 16)] * 3, id="one head"),
        pytest.param([(2, 2, 8, 16), (1, 2, 8, 16), (1, 1, 8, 16)], id="products"),
        pytest.param([(1, 2, 8, 16), (1, 2, 8, 16), (1, 2, 8, 32)], id="longer values"),
    ],
)
def test_probabilities_are_rounded_to_fp8(shapes: list[tuple[int, ...]], causal: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    check_graph(attention(shapes, causal), [torch.randn(shape, generator=generator) for shape in shapes])


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_16_bits(dtype: torch.dtype, masked: bool) -> None:
    """The step of the probabilities has 16 bits too, so that a few of them become a neighbouring number of fp8."""
    shapes = [(2, 4, 32, 16)] * 3
    graph = attention(shapes, False, dtype, masked)
    inputs = [torch.randn(shape).to(dtype) for shape in shapes] + [torch.rand(1, 1, 32, 32) > 0.3] * masked
    (wanted,) = interpret(graph, inputs)
    (given,) = computed(graph, inputs)
    assert relative_error(given, wanted) < 0.02
    assert built(graph, Emission(graph).emit_all())


class Bert(nn.Module):
    """One layer of a BERT."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertLayer

        config = BertConfig(hidden_size=64, num_attention_heads=2, intermediate_size=128)
        config._attn_implementation = "sdpa"
        self.layer = BertLayer(config)

    def forward(self, x: Tensor) -> Tensor:
        given = self.layer(x)
        y: Tensor = given if isinstance(given, Tensor) else given[0]
        return y


@pytest.mark.parametrize(
    ("model", "data"),
    [pytest.param(Block, batches, id="vit"), pytest.param(Bert, lambda: [torch.randn(2, 9, 64) for _ in range(3)], id="bert")],
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_block_of_a_transformer(
    model: Callable[[], nn.Module], data: Callable[[], list[Tensor]], dtype: torch.dtype, graphs: list[Graph]
) -> None:
    module, given = model().eval(), data()
    engine = engine_of(module, inputs=[given[0]], enabled_precisions={dtype, FP8}, calibrator=given, min_block_size=1)
    (graph,) = graphs
    nodes, kinds = (Counter(found) for found in ([type(n.op).__name__ for n in graph.nodes], [la.kind for la in engine.layers]))
    assert kinds["quantize"] == nodes["Quantize"] >= 5 and kinds["dequantize"] == nodes["Dequantize"] >= 9
    assert kinds["attention_input"] == 1
    fp8 = [output for layer in engine.layers if layer.kind == "quantize" for output in layer.outputs]
    assert fp8 and all(output.startswith("fp8[") for output in fp8), fp8
    inputs: list[Any] = [given[0]]
    wanted = outputs_of(module, inputs)
    here, there = error(computed(graph, inputs), wanted), error(interpret(graph, inputs), wanted)
    assert 0.001 < here < 0.08 and here <= 1.3 * there
