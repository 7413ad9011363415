"""fp8 (e4m3): where calibration puts it, what that costs, and what becomes of it where engines do not compute in it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from torchsmith.config import Config
from torchsmith.convert import convert
from torchsmith.errors import CaptureError, InvalidInput
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ops.attention import Attention
from torchsmith.ops.quantize import Quantize
from torchsmith.ptq import CacheCalibrator, DataLoaderCalibrator
from torchsmith.quantize import precision
from torchsmith.quantize.abilities import ALL, Int8Abilities
from torchsmith.quantize.post_training import Quantized, quantize
from torchsmith.quantize.simulate import attention_of_fp8
from torchsmith.quantize.statistics import Statistics
from torchsmith.quantize.thresholds import CalibrationAlgo, threshold
from torchsmith.quantize.without_float8 import has_float8, without_float8
from torchsmith.target import Target, this_cpu
from torchsmith.testing.compare import relative_error
from torchsmith.testing.op_case import OpCase
from torchsmith.testing.pipeline import Pipeline

FP8 = torch.float8_e4m3fn
NOWHERE = Int8Abilities()
fake = torch.ops.torchsmith.fake_quantize_float8
quantized_decomposed = torch.ops.quantized_decomposed


class Block(nn.Module):
    """A transformer's block behind a convolution, with heads of its own attention."""

    def __init__(self, features: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(8, features, 1)
        self.norm, self.last = nn.LayerNorm(features), nn.LayerNorm(features)
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.up, self.down = nn.Linear(features, 2 * features), nn.Linear(2 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        batch, length, features = x.shape
        parts = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, features // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, features))
        given: Tensor = x + self.down(F.gelu(self.up(self.last(x))))
        return given


def batches(count: int = 3) -> list[Tensor]:
    return [torch.randn(2, 8, 4, 4) for _ in range(count)]


def quantized(model: nn.Module, *enabled: torch.dtype, data: Any = None, target: Target | None = None,
              abilities: Int8Abilities = ALL, **options: Any) -> Quantized:  # fmt: skip
    road = Pipeline(model.eval(), batches()[0]).capture().lower()
    data = batches() if data is None else data
    config = Config.from_options(enabled_precisions={torch.float32, *enabled}, calibrator=data, **options)
    return quantize(road.lowered, config.quantize, target, abilities)


def graph_of(found: Quantized) -> Graph:
    nodes = [node for node in found.program.graph.nodes if node.op == "call_function"]
    inputs = [node for node in found.program.graph.nodes if node.name in found.program.graph_signature.user_inputs]
    (output,) = (node for node in found.program.graph.nodes if node.op == "output")
    return convert(found.program, inputs, nodes, output.args[0])


def dtypes(found: Quantized) -> set[torch.dtype]:
    """What the graph's values are quantized to, weights included."""
    graph = graph_of(found)
    return {node.op.dtype for node in graph.nodes if isinstance(node.op, Quantize)} | {
        tensor.dtype for tensor in graph.constants.values() if tensor.dtype in (torch.int8, FP8)
    }


def test_linear_layers_and_attention_take_fp8_and_convolutions_int8() -> None:
    model = Block()
    assert dtypes(quantized(model, FP8)) == {FP8}
    assert dtypes(quantized(model, torch.int8)) == {torch.int8}
    assert dtypes(quantized(model, torch.int8, FP8)) == {torch.int8, FP8}
    graph = graph_of(quantized(model, FP8))
    weights = [tensor for tensor in graph.constants.values() if tensor.dtype == FP8]
    assert sorted(tuple(w.shape) for w in weights) == [(16, 16), (16, 32), (32, 16), (48, 16)]
    (attention,) = (node.op for node in graph.nodes if isinstance(node.op, Attention))
    assert attention.probabilities == FP8
    both = graph_of(quantized(model, torch.int8, FP8))
    assert {tuple(t.shape) for t in both.constants.values() if t.dtype == torch.int8} == {(16, 8, 1, 1)}


def test_what_is_skipped_stays_a_float() -> None:
    graph = graph_of(quantized(Block(), FP8, skip_layers={"up", "down"}))
    assert sorted(tuple(t.shape) for t in graph.constants.values() if t.dtype == FP8) == [(16, 16), (48, 16)]


@pytest.mark.parametrize("enabled", [(FP8,), (torch.int8, FP8)], ids=str)
def test_results_are_near_float64s(enabled: tuple[torch.dtype, ...]) -> None:
    model, x = Block(), batches(1)[0]
    graph = graph_of(quantized(model, *enabled))
    (given,) = interpret(graph, [x])
    error = relative_error(given, Block.forward(model.double(), x.double()))
    assert 0.002 < error < 0.06


def test_scales_make_the_greatest_magnitude_the_greatest_number() -> None:
    model, data = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Flatten(2), nn.Linear(16, 5)), batches()
    seen = max(float(model.get_submodule("0")(x).abs().max()) for x in data)
    graph = graph_of(quantized(model, FP8, data=data))
    scales = sorted((t for t in graph.constants.values() if t.dtype == torch.float32), key=Tensor.dim)
    assert scales[0].item() == pytest.approx(seen / 448)
    expected = model.get_parameter("2.weight").abs().amax(1) / 448
    assert any(t.shape == expected.shape and torch.allclose(t, expected) for t in scales)


def test_ranges_are_the_greatest_magnitude_unless_percentiles_are_asked_for() -> None:
    found = Statistics.of(torch.cat((torch.randn(100_000), torch.tensor([90.0]))))
    chosen = {algo: threshold(found, algo, FP8) for algo in CalibrationAlgo}
    assert chosen.pop(CalibrationAlgo.LEGACY_CALIBRATION) < 10
    assert set(chosen.values()) == {90.0}
    assert threshold(Statistics.of(torch.zeros(5)), CalibrationAlgo.MSE, FP8) == 0


def test_the_cache_knows_the_format(tmp_path: Path) -> None:
    model, file = Block(), tmp_path / "cache.json"
    first = quantized(model, FP8, data=DataLoaderCalibrator(batches(), cache_file=file))
    assert " in float8_e4m3fn" in file.read_text()
    again = quantized(model, FP8, data=CacheCalibrator(file))
    assert again.calibration == first.calibration
    with pytest.raises(InvalidInput, match=r"has no range for .*enabled_precisions"):
        quantized(model, torch.int8, data=CacheCalibrator(file))


def told(function: Any) -> list[str]:
    precision._told.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
        function()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("target", "abilities", "computes"),
    [
        (this_cpu(), NOWHERE, False),
        (this_cpu(), ALL, True),
        (Target("cuda", "sm_86"), Int8Abilities(fp8_since=89), False),
        (Target("cuda", "sm_89"), Int8Abilities(fp8_since=89), True),
        (Target("cuda", "sm_120"), Int8Abilities(fp8_since=89), True),
        (this_cpu(), Int8Abilities(fp8_since=89), False),
    ],
)
def test_where_engines_have_no_fp8_the_user_is_told_once(target: Target, abilities: Int8Abilities, computes: bool) -> None:
    model, made = nn.Sequential(nn.Flatten(2), nn.Linear(16, 5)), list[Quantized]()
    sentences = told(lambda: made.append(quantized(model, FP8, target=target, abilities=abilities)))
    assert [dtypes(found) for found in made] == [{FP8} if computes else set()] * 2
    if computes:
        assert not sentences
    else:
        assert set(made[0].reasons.values()) == {f"{target} does not compute in torch.float8_e4m3fn"}
        (sentence,) = sentences
        assert "does not compute in torch.float8_e4m3fn natively" in sentence
        assert ("GPUs from sm_89 on do" in sentence) == (target.device == "cuda")


def test_openvino_computes_in_floats_what_fp8_was_enabled_for() -> None:
    model, x = Block().eval(), batches(1)[0]
    options: dict[str, Any] = {"inputs": [x], "backend": "openvino", "calibrator": batches()}
    precision._told.clear()
    with pytest.warns(UserWarning, match=r"does not compute in torch.float8_e4m3fn natively"):
        fast = torchsmith.compile(model, enabled_precisions={torch.float32, FP8}, **options)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    both = torchsmith.compile(model, enabled_precisions={torch.float32, torch.int8, FP8}, **options)
    assert 0.0005 < relative_error(both(x), model(x)) < 0.06


def test_the_reference_backend_computes_in_fp8() -> None:
    model, x = Block().eval(), batches(1)[0]
    fast = torchsmith.compile(
        model, inputs=[x], backend="reference", enabled_precisions={torch.float32, FP8}, calibrator=batches(), min_block_size=1
    )
    assert 0.002 < relative_error(fast(x), model(x)) < 0.06


class Trained(nn.Module):
    """Quantization-aware: a layer's input and weight are fake-quantized."""

    def __init__(self, scale: float = 0.01) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 5)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("steps", self.linear.weight.detach().abs().amax(1) / 448)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(fake(x.flatten(2), self.scale), fake(self.linear.weight, self.steps, 0), self.linear.bias)


def test_a_trained_models_own_fp8_passes_through_or_is_left_out() -> None:
    model, x = Trained().eval(), batches(1)[0]
    lowered = Pipeline(model, x).capture().lower().lowered
    config = Config.from_options(enabled_precisions={torch.float32}).quantize
    kept = quantize(lowered, config, this_cpu(), ALL)
    assert kept.program is lowered.program and has_float8(kept.program)
    assert dtypes(kept) == {FP8}
    torch.testing.assert_close(interpret(graph_of(kept), [x])[0], model(x))
    precision._told.clear()
    with pytest.warns(UserWarning, match="does not compute in torch.float8_e4m3fn natively"):
        left = quantize(lowered, config, this_cpu(), NOWHERE)
    assert not has_float8(left.program) and not dtypes(left)
    weight = fake(model.linear.weight, model.steps, 0)
    torch.testing.assert_close(interpret(graph_of(left), [x])[0], F.linear(x.flatten(2), weight, model.linear.bias))
    fast = torchsmith.compile(model, inputs=[x], backend="openvino", min_block_size=1)
    torch.testing.assert_close(fast(x), F.linear(x.flatten(2), weight, model.linear.bias), rtol=1e-4, atol=1e-4)


def test_pairs_of_other_libraries_are_left_out_too() -> None:
    import torch.ao.quantization.fx._decomposed  # registers them

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(5, 16).to(FP8))

        def forward(self, x: Tensor) -> Tensor:
            q = torch.ops.quantized_decomposed.quantize_per_tensor(x.flatten(2), 0.01, 0, -448, 448, FP8)
            y = torch.ops.quantized_decomposed.dequantize_per_tensor(q, 0.01, 0, -448, 448, FP8)
            return F.linear(y, torch.ops.quantized_decomposed.dequantize_per_tensor(self.weight, 0.01, 0, -448, 448, FP8))

    model, x = Pair().eval(), batches(1)[0]
    program = Pipeline(model, x).capture().lower().lowered.program
    left = Quantized(without_float8(program))
    assert has_float8(program) and not has_float8(left.program)
    torch.testing.assert_close(interpret(graph_of(left), [x])[0], F.linear(x.flatten(2), model.get_buffer("weight").float() * 0.01))


@pytest.mark.parametrize(
    ("scale", "why"), [(0.0, "a scale is positive"), (float("inf"), "a scale is a finite number"), (float("nan"), "finite number")]
)
def test_scales_that_are_no_use_are_told(scale: float, why: str) -> None:
    with pytest.raises(CaptureError, match=f"fake_quantize_float8.* has the scale .*{why}"):
        Pipeline(Trained(scale).eval(), batches(1)[0]).capture()


@pytest.mark.parametrize("enabled", [(FP8,), (torch.int8, FP8)], ids=str)
def test_accuracy_budgets_choose_among_fp8_too(enabled: tuple[torch.dtype, ...]) -> None:
    model, data = Block().eval(), batches()
    options: dict[str, Any] = {"inputs": [data[0]], "backend": "reference", "calibrator": data, "min_block_size": 1}
    precisions = {torch.float32, *enabled}

    def chosen(budget: float) -> dict[str, str]:
        fast = torchsmith.compile(model, enabled_precisions=precisions, accuracy_budget=budget, **options)
        record = torchsmith.explain(fast).accuracy
        assert record is not None and record["measured_on"] == "the engines" and record["spent"] <= budget
        assert relative_error(fast(data[0]), model(data[0])) <= budget * 1.5
        return {layer["name"]: layer["precision"] for layer in record["layers"]}

    wide, narrow = chosen(0.2), chosen(1e-5)
    assert set(narrow.values()) == {"float32"}
    assert {name for name, dtype in wide.items() if dtype == "float8_e4m3fn"} >= {
        "qkv/linear", "out/linear_1", "up/linear_2", "down/linear_3", "scaled_dot_product_attention",
    }  # fmt: skip
    assert ("int8" in wide.values()) == (torch.int8 in enabled)
    some = chosen(0.015)
    assert 0 < sum(dtype == "float8_e4m3fn" for dtype in some.values()) < 5


def test_a_simulated_layer_computes_what_an_engine_does() -> None:
    model, data = Block().eval(), batches()
    fast = torchsmith.compile(
        model, inputs=[data[0]], backend="reference", calibrator=data, min_block_size=1,
        enabled_precisions={torch.float32, FP8}, accuracy_budget=0.2,
    )  # fmt: skip
    record = torchsmith.explain(fast).accuracy
    assert record is not None
    assert record["simulated"]["error"] == pytest.approx(record["error"], rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_models_of_16_bits(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 5)).to(dtype).eval()
    data = [torch.randn(4, 16).to(dtype) for _ in range(2)]
    precision._told.clear()
    fast = torchsmith.compile(
        model, inputs=[data[0]], backend="reference", calibrator=data, min_block_size=1,
        enabled_precisions={torch.float32, FP8},
    )  # fmt: skip
    y = fast(data[0])
    assert y.dtype == dtype
    assert 0.001 < relative_error(y, model(data[0])) < 0.12


def test_a_program_that_rounds_to_fp8_in_pytorch_is_saved_and_loaded(tmp_path: Path) -> None:
    model, x = Trained().eval(), batches(1)[0]
    named = {"torchsmith.fake_quantize_float8.default"}
    fast = torchsmith.compile(model, inputs=[x], backend="reference", min_block_size=1, torch_executed_ops=named)
    torchsmith.save(fast, tmp_path / "model.pt2")
    torch.save((x, fast(x).detach()), tmp_path / "wanted.pt")
    code = (
        "import sys, torch, torchsmith\n"
        "x, wanted = torch.load(sys.argv[2])\n"
        "assert torch.equal(torchsmith.load(sys.argv[1])(x), wanted)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt2"), str(tmp_path / "wanted.pt")], check=True)


@pytest.mark.slow
def test_sentences_keep_their_meaning() -> None:
    """MiniLM with its real weights, in fp8 as the interpreter computes it, against float64."""
    from torchsmith.bench.accuracy import Texts, outputs

    texts = Texts.of(32, 32)
    fast = torchsmith.compile(
        texts.model, inputs=texts.batches[0], backend="reference", calibrator=texts.calibration,
        enabled_precisions={torch.float32, FP8},
    )  # fmt: skip
    given, wanted = outputs(fast, texts.batches), outputs(texts.model.double(), texts.batches)
    assert float(torch.cosine_similarity(given.double(), wanted).min()) > 0.99
    assert relative_error(given, wanted) < 0.1


def test_bert_of_minilms_size() -> None:
    """Two layers of it, with random weights: each rounds to a sixteenth at most, and layers' errors partly cancel."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=100, hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config, add_pooling_layer=False).eval()
    model.config.return_dict = False
    data = [torch.randint(0, 100, (2, 24)) for _ in range(3)]
    road = Pipeline(model, data[0]).capture().lower()
    found = quantize(road.lowered, Config.from_options(enabled_precisions={torch.float32, FP8}, calibrator=data).quantize)
    assert dtypes(found) == {FP8}
    (given,) = interpret(graph_of(found), [data[0]])
    with torch.no_grad():
        (wanted,) = model.double()(data[0])
    assert 0.005 < relative_error(given, wanted) < 0.05


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}], ids=str)
def test_attention_is_simulated_as_graphs_have_it(options: dict[str, Any]) -> None:
    heads = 2 if "enable_gqa" in options else 4
    given = torch.randn(2, 4, 5, 8), torch.randn(2, heads, 7, 8), torch.randn(2, heads, 7, 8)
    step = torch.tensor(2.0**-6)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(fake(q, step), fake(k, step), fake(v, step), **options)

    graph = OpCase(attend, *given).graph()
    assert any(isinstance(node.op, Attention) and node.op.probabilities == FP8 for node in graph.nodes)
    simulated = attention_of_fp8(*(fake(x, step) for x in given), **options)
    torch.testing.assert_close(simulated, interpret(graph, given)[0])
    assert not torch.equal(simulated, attend(*given))
