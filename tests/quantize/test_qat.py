"""Quantization-aware training, as torch.ao and torchao have it, compiled: int8 layers that give what training saw."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.errors import CaptureError, InvalidOption
from torchsmith.testing.compare import relative_error
from torchsmith.testing.pipeline import Pipeline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.ao announces torchao
    from torch.ao import quantization as ao
    from torch.ao.nn import quantized as nnq
    from torch.ao.quantization import quantize_fx

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.ao's
INT8 = {torch.float32, torch.int8}


class Net(nn.Module):
    """Convolutions with and without batch norm, one of them depthwise, a residual sum, pooling and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.sum = ao.QuantStub(), ao.DeQuantStub(), nnq.FloatFunctional()
        self.c1, self.b1, self.r1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.c2, self.b2, self.r2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU()
        self.c3, self.pool = nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1)
        self.l1, self.r3, self.l2 = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.r1(self.b1(self.c1(self.quant(x))))
        x = self.sum.add(self.c3(self.r2(self.b2(self.c2(x)))), x)
        y: Tensor = self.dequant(self.l2(self.r3(self.l1(self.pool(x).flatten(1)))))
        return y


def eager(engine: str) -> nn.Module:
    net: Any = Net().train()
    net.qconfig = ao.get_default_qat_qconfig(engine)  # type: ignore[no-untyped-call]
    fused = ao.fuse_modules_qat(net, [["c1", "b1", "r1"], ["c2", "b2", "r2"], ["l1", "r3"]])  # type: ignore[no-untyped-call]
    prepared: nn.Module = ao.prepare_qat(fused)  # type: ignore[no-untyped-call]
    return prepared


def traced(engine: str) -> nn.Module:
    mapping = ao.get_default_qat_qconfig_mapping(engine)
    return quantize_fx.prepare_qat_fx(Net().train(), mapping, (torch.randn(2, 3, 16, 16),))


def data(seed: int, count: int = 32) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def trained(module: nn.Module, steps: int = 12) -> nn.Module:
    """After a few steps towards what a random teacher says, in eval mode with its ranges fixed."""
    target = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for step in range(steps):
        loss = (module(data(step % 3)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval().apply(ao.disable_observer)


@pytest.fixture(
    scope="module", params=[(eager, "x86"), (eager, "qnnpack"), (traced, "x86")], ids=["eager-x86", "eager-qnnpack", "fx"]
)
def module(request: pytest.FixtureRequest) -> nn.Module:
    prepare, engine = request.param
    torch.manual_seed(0)
    return trained(prepare(engine))


def close(given: Tensor, wanted: Tensor, unrounded: Tensor) -> None:
    """Assert that a result is what the rounding network gives, and not what it would give without rounding.

    A number beside a tie inside may go to either side of it, which moves what follows by a step.
    """
    ours, theirs = relative_error(given, wanted), relative_error(unrounded, wanted)
    assert ours < 0.25 * theirs, f"{ours:.3g} from the network that was trained, {theirs:.3g} without rounding"


def unrounded(module: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = copy.deepcopy(module).apply(ao.disable_fake_quant)(x)
    return result


def test_a_trained_network_is_compiled_to_int8(module: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = [type(m) for m in module.modules()]
    fast = torchsmith.compile(module, inputs=[data(7)], enabled_precisions=INT8)
    with torch.no_grad():
        close(fast(data(7)), module(data(7)), unrounded(module, data(7)))
    assert [type(m) for m in module.modules()] == kinds
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_batch_norm_is_folded_and_every_layer_is_int8(module: nn.Module) -> None:
    from tests.backends.openvino.test_quantize import executed, needs_int8

    pipeline = Pipeline(module, data(7), enabled_precisions=INT8).capture().lower().partition().whole().build("openvino")
    (engine,) = pipeline.built.engines
    kinds = [type(node.op).__name__ for node in engine.graph.nodes]
    assert not {"BatchNorm", "Cast"} & set(kinds) and kinds.count("Convolution") == 3 and kinds.count("Linear") == 2
    if not needs_int8.args[0]:
        precisions, _ = executed(engine.graph)
        assert len(precisions) == 5 and set(precisions) <= {"u8", "i8"}, precisions


def test_the_interpreter_gives_what_training_saw(module: nn.Module) -> None:
    pipeline = Pipeline(module, data(7), enabled_precisions=INT8).capture().lower().partition().build("reference")
    with torch.no_grad():
        close(pipeline.module(data(7)), module(data(7)), unrounded(module, data(7)))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_the_rest_may_be_reduced(module: nn.Module, precision: torch.dtype) -> None:
    fast = torchsmith.compile(module, inputs=[data(7)], enabled_precisions={precision, torch.int8})
    with torch.no_grad():
        close(fast(data(7)), module(data(7)), unrounded(module, data(7)))


def test_the_batch_may_be_dynamic(module: nn.Module) -> None:
    shape = torchsmith.Input(min_shape=(1, 3, 16, 16), opt_shape=(4, 3, 16, 16), max_shape=(32, 3, 16, 16))
    fast = torchsmith.compile(module, inputs=[shape], enabled_precisions=INT8, require_full_compilation=True)
    with torch.no_grad():
        for count in (1, 5):
            close(fast(data(7, count)), module(data(7, count)), unrounded(module, data(7, count)))


def test_an_exported_program_may_bring_fake_quantization(module: nn.Module) -> None:
    from torchsmith.capture import capture
    from torchsmith.inputs import resolve

    program = capture(module, resolve([data(7)])).program
    fast = torchsmith.compile(program, enabled_precisions=INT8)
    decomposed = torchsmith.compile(program.run_decompositions(), enabled_precisions=INT8, require_full_compilation=True)
    with torch.no_grad():
        close(fast(data(7)), module(data(7)), unrounded(module, data(7)))
        close(decomposed(data(7)), module(data(7)), unrounded(module, data(7)))


def test_bad_ranges_say_which_and_what_to_do(module: nn.Module) -> None:
    bad: Any = copy.deepcopy(module)
    name, quantizer = next((n, m) for n, m in bad.named_modules() if n.endswith("weight_fake_quant"))
    quantizer.scale[0] = float("inf")
    with pytest.raises(CaptureError, match=rf"{name} has the scale inf.*train it on"):
        torchsmith.compile(bad, inputs=[data(7)], enabled_precisions=INT8)


def test_a_network_that_never_saw_data_is_refused() -> None:
    with pytest.raises(CaptureError, match="never observed anything"):
        torchsmith.compile(eager("x86").eval(), inputs=[data(7)], enabled_precisions=INT8)


def test_int8_without_ranges_is_refused() -> None:
    with pytest.raises(InvalidOption, match="fake-quantize ops"):
        torchsmith.compile(nn.Linear(3, 4), inputs=[torch.randn(2, 3)], enabled_precisions=INT8)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed; PT2E's quantization is there")
@pytest.mark.parametrize("aware", [False, True], ids=["post-training", "aware"])
def test_pt2e(aware: bool) -> None:
    quantize_pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    torch.manual_seed(0)
    net = Net().eval()
    exported = torch.export.export(net, (data(1),)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=aware))
    prepare = quantize_pt2e.prepare_qat_pt2e if aware else quantize_pt2e.prepare_pt2e
    prepared = prepare(exported, quantizer)
    for seed in range(3):
        prepared(data(seed))
    converted = quantize_pt2e.convert_pt2e(prepared)
    program = torch.export.export(converted, (data(7),))
    fast = torchsmith.compile(program, enabled_precisions=INT8, require_full_compilation=True)
    with torch.no_grad():
        close(fast(data(7)), converted(data(7)), net(data(7)))


@pytest.mark.parametrize(
    ("greatest", "sentence"),
    [
        (0.0, r"has the scale 0, and a scale is positive; train it on"),
        (float("inf"), "has the scale inf, and a scale is a finite number"),
        (float("nan"), "has the scale nan, and a scale is a finite number"),
    ],
)
def test_ranges_that_the_model_computes_itself_are_checked(greatest: float, sentence: str) -> None:
    class Own(nn.Module):
        greatest: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)
            self.register_buffer("greatest", torch.tensor(greatest))

        def forward(self, x: Tensor) -> Tensor:
            zero_point = torch.zeros((), dtype=torch.int32)
            y: Tensor = self.layer(torch.fake_quantize_per_tensor_affine(x, self.greatest / 127, zero_point, -128, 127))
            return y

    with pytest.raises(CaptureError, match=sentence):
        torchsmith.compile(Own().eval(), inputs=[torch.randn(2, 8)], enabled_precisions=INT8)
