"""Every model of the road becomes one TensorRT engine, and the networks compute what their graphs mean.

Engines are built for GPUs that are not here. Networks are computed layer by layer on the CPU, by TensorRT's documentation.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torchsmith
from tests.test_models import BF16, F32, MODELS, error, timm_model
from torchsmith.backends.tensorrt import build
from torchsmith.backends.tensorrt.library import MISSING, installed
from torchsmith.bench.models import seeded
from torchsmith.config import BuildConfig
from torchsmith.ir.graph import Graph, Value
from torchsmith.ir.interpret import bind_symbols
from torchsmith.quantize.moments import Moments
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.tensors import to_bytes
from torchsmith.target import Target
from torchsmith.testing.compare import doubled

if installed() is None:
    pytest.skip(MISSING, allow_module_level=True)

from tests.backends.tensorrt.evaluate import evaluate
from torchsmith.backends.tensorrt.emit import Emission, edge_names
from torchsmith.backends.tensorrt.engine import Engine, parse

F16 = torch.float16
PRODUCTS = ("convolution", "matrix_multiply")
ROAD = [*MODELS, "vit_small_patch16_224"]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that engines are built of, as they are."""
    found: list[Graph] = []
    original = build.build_engine

    def recorded(graph: Graph, target: Target, config: BuildConfig) -> bytes:
        found.append(graph)
        return original(graph, target, config)

    monkeypatch.setattr(build, "build_engine", recorded)
    return found


def engine_of(model: nn.Module, **options: Any) -> Engine:
    """The only engine of the model, and nothing else."""
    module = torchsmith.compile(model, backend="tensorrt", target="sm_89", require_full_compilation=True, **options)
    assert isinstance(module, CompiledModule)
    explained = torchsmith.explain(module)
    assert len(explained.segments) == 1 and not explained.refusals and not module.plan.torch_calls
    (call,) = module.plan.engine_calls
    return parse(to_bytes(module.program.constants[call.constant]))


def computed(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the graph's network gives."""
    emission = Emission(graph)
    names, results = edge_names(graph)
    found = evaluate(emission.emit_all(), dict(zip(names, inputs, strict=True)))
    return [found[name] for name in results]


def rounded(graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the graph gives where every op computes in float32 and is rounded once, as layers are in `computed`.

    PyTorch's own float16 on a CPU is no nearer to float64, and takes ten times as long.
    """
    env, halves = bind_symbols(graph, inputs), (F16, BF16)
    tensors: dict[Value, Tensor] = {**graph.constants, **dict(zip(graph.inputs, inputs, strict=True))}
    for node in graph.nodes:
        given = [tensors[v].float() if tensors[v].dtype in halves else tensors[v] for v in node.inputs]
        made = node.op.bound(env).reference(*given)
        for value, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True):
            tensors[value] = tensor.to(value.type.dtype)
    return [tensors[value] for value in graph.outputs]


def outputs_of(model: nn.Module, args: Any, kwargs: Any = {}) -> tuple[Tensor, ...]:  # noqa: B006 - it is only read
    """What the model gives in float64, in order."""
    with torch.no_grad():
        given = copy.deepcopy(model).double()(*doubled(args), **doubled(kwargs))
    return (given,) if isinstance(given, Tensor) else tuple(given.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ROAD)
def test_a_model_is_built_whole(name: str, graphs: list[Graph]) -> None:
    """Its products are of float16, and its network is as near to float64 as its graph is."""
    model, args, kwargs = MODELS[name]() if name in MODELS else timm_model(name)
    engine = engine_of(model, inputs=args, kwarg_inputs=kwargs, enabled_precisions={F16})
    assert engine.plan.numel() > 1_000_000
    assert products(engine) == {"half"}
    (graph,) = graphs
    inputs, wanted = [*args, *kwargs.values()], outputs_of(model, args, kwargs)
    # of random weights inception_v3 leaves float16's range, in PyTorch too
    assert error(computed(graph, inputs), wanted) <= 1.3 * error(rounded(graph, inputs), wanted)


def test_every_model_of_the_road_is_here() -> None:
    listed = Path("README.md").read_text(encoding="utf-8").partition("## Models\n")[2].partition("\n## ")[0]
    names = set(re.findall(r"`([a-z]+_?[a-z0-9_]*)`", listed))
    flow = {"raft_small"}  # its samples at grids, all that is new in it, are tested by themselves
    assert len(names) == 22 and names <= {*ROAD, *flow}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, dtype) for name in ("efficientnet_b0", "vit_tiny_patch16_224") for dtype in (BF16, F32)), ("inception_v3", F32)],
    ids=str,
)
def test_other_precisions(name: str, dtype: torch.dtype, graphs: list[Graph]) -> None:
    """And one engine for every batch."""
    model, args, _ = MODELS[name]()
    images = torchsmith.Input((Dim("batch", min=1, max=16), *args[0].shape[1:]))
    engine = engine_of(model, inputs=[images], enabled_precisions={dtype})
    assert products(engine) == {{BF16: "bf16", F32: "float"}[dtype]}
    assert engine.inputs[0].shape[1:] == args[0].shape[1:] and isinstance(engine.inputs[0].shape[0], str)
    (graph,) = graphs
    args = (seeded(2, lambda: torch.randn(2, *args[0].shape[1:])),)
    wanted = outputs_of(model, args)
    most = 1e-5 if dtype == F32 else 1.3 * error(rounded(graph, args), wanted)
    assert error(computed(graph, args), wanted) <= most


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "products"), [("efficientnet_b0", (48, 82)), ("resnet50", (53, 54)), ("vit_tiny_patch16_224", (48, 50))]
)
def test_int8(name: str, products: tuple[int, int], graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT sees every pair of quantize and dequantize as such, so that it can compute in int8 between them.

    products: those in int8, and all. Images are seen in half precision, and so are the gates of EfficientNet.
    """
    # weights are rounded to the nearest: to round them by second moments takes most of the time, and is tested elsewhere
    monkeypatch.setattr(Moments, "offsets", lambda *_: None)
    model, args, _ = timm_model(name)
    engine = engine_of(model, inputs=args, enabled_precisions={F16, torch.int8}, calibrator=[args[0]])
    (graph,) = graphs
    nodes, kinds = (Counter(found) for found in ([type(n.op).__name__ for n in graph.nodes], [la.kind for la in engine.layers]))
    assert kinds["quantize"] == nodes["Quantize"] and kinds["dequantize"] == nodes["Dequantize"]
    cast = [layer for layer in engine.layers if layer.kind == "cast" and layer.outputs[0].startswith("int8")]
    assert not cast, "something is quantized by other means"
    found = dequantized(graph)
    assert (sum(found), len(found)) == products
    wanted = outputs_of(model, args)
    given = error(computed(graph, args), wanted)
    assert given <= 0.02 and given <= 1.3 * error(rounded(graph, args), wanted)


def dequantized(graph: Graph) -> list[bool]:
    """For each product of the network, whether both factors come from int8 by dequantizing layers.

    Between them there may be what TensorRT moves dequantizing layers past: reshapes, and the greatest of windows.
    """
    emission = Emission(graph)
    network = emission.emit_all()
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def from_int8(tensor: Any) -> bool:
        layer = None if tensor is None else maker.get(tensor.name)
        if layer is not None and layer.type.name in ("SHUFFLE", "POOLING"):
            return from_int8(layer.get_input(0))
        return layer is not None and layer.type.name == "DEQUANTIZE" and layer.get_input(0).dtype.name == "INT8"

    products = [layer for layer in layers if layer.type.name.lower() in PRODUCTS]
    return [from_int8(layer.get_input(0)) and from_int8(layer.get_input(1)) for layer in products]


def test_int8_in_one_dimension(graphs: list[Graph]) -> None:
    """Kernels get their second dimension before they are dequantized."""
    model = nn.Sequential(nn.Conv1d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, 32, 3, groups=2), nn.ReLU()).eval()
    x = torch.randn(2, 16, 40)
    engine = engine_of(model, inputs=[x], enabled_precisions={F32, torch.int8}, calibrator=[x], min_block_size=1)
    (graph,) = graphs
    emission = Emission(graph)
    network = emission.emit_all()
    layers = {network.get_layer(i).name: network.get_layer(i) for i in range(network.num_layers)}
    kernels = [layer.get_input(1) for layer in layers.values() if layer.type.name == "CONVOLUTION"]
    made = {layer.get_output(0).name: layer.type.name for layer in layers.values()}
    assert [made[kernel.name] for kernel in kernels] == ["DEQUANTIZE"] * 2 and engine.plan.numel()
    torch.testing.assert_close(computed(graph, [x]), rounded(graph, [x]), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_engine_for_every_batch_and_length_of_bert(graphs: list[Graph]) -> None:
    from transformers import BertConfig, BertModel

    model = seeded(0, lambda: BertModel(BertConfig(num_hidden_layers=2))).eval()
    ids = torchsmith.Input((Dim("batch", min=1, max=8), Dim("tokens", min=1, max=128)), dtype=torch.int64)
    engine_of(model, inputs=[ids], kwarg_inputs={"attention_mask": ids}, enabled_precisions={F32})
    (graph,) = graphs
    for shape in ((1, 1), (2, 24), (3, 50)):
        given = numbers(*shape, below=30000)
        mask = torch.ones_like(given)
        mask[0, shape[1] // 2 + 1 :] = 0
        wanted = outputs_of(model, [given], {"attention_mask": mask})
        assert error(computed(graph, [given, mask]), wanted) <= 1e-5


@pytest.mark.slow
def test_one_engine_for_every_batch_of_recurrent_layers(graphs: list[Graph]) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 12)
            self.lstm = nn.LSTM(12, 10, num_layers=2, bidirectional=True, batch_first=True)
            self.gru, self.head = nn.GRU(20, 9), nn.Linear(9, 5)

        def forward(self, ids: Tensor) -> Tensor:
            x, _ = self.lstm(self.embed(ids))
            x, _ = self.gru(x.transpose(0, 1))
            given: Tensor = self.head(x)
            return given

    model = seeded(0, Tagger).eval()
    ids = torchsmith.Input((Dim("batch", min=2, max=8), 17), dtype=torch.int64)
    engine_of(model, inputs=[ids], enabled_precisions={F32})
    (graph,) = graphs
    for batch in (2, 5):
        given = numbers(batch, 17, below=50)
        assert error(computed(graph, [given]), outputs_of(model, [given])) <= 1e-5


def numbers(*shape: int, below: int) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(1))


def products(engine: Engine) -> set[str]:
    """The dtypes that convolutions and matrix products give."""
    found = {layer.outputs[0].partition("[")[0] for layer in engine.layers if layer.kind in PRODUCTS}
    assert found, "no product at all"
    return found
