"""FakeQuantize modules of quantization-aware training: captured as ops, and refused where training left no usable range."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.capture import Captured, capture
from torchsmith.capture.ranges import fixed_ranges
from torchsmith.errors import CaptureError
from torchsmith.inputs import Input, resolve
from torchsmith.testing.op_case import rand

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.ao announces torchao
    from torch.ao import quantization as ao
    from torch.ao.nn import qat
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize


class Net(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.ReLU(), quantizer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return y


def observed(quantizer: Any, x: Tensor) -> Any:
    quantizer(x)
    return quantizer.eval()


def captured(module: nn.Module, *inputs: Any) -> Captured:
    return capture(module, resolve(inputs))


def fake_quantizers() -> list[Any]:
    """One of each kind, which have seen a batch of (4, 3)."""
    x = rand(4, 3)
    kind: Any = ao.FakeQuantize
    channels = kind.with_args(
        observer=ao.MovingAveragePerChannelMinMaxObserver, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=1
    )
    made = [ao.default_fake_quant(), ao.default_fused_act_fake_quant(), channels(), ao.default_weight_fake_quant()]
    return [*(observed(m, x) for m in made), ao.default_fixed_qparams_range_0to1_fake_quant()]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("observing", [True, False], ids=["observing", "fixed"])
def test_each_kind_is_captured_as_its_op(number: int, observing: bool) -> None:
    quantizer, x = fake_quantizers()[number], rand(5, 3)
    module = Net(quantizer).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quantizer.enable_observer(observing)
    program = captured(module, x).program
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets[0] == "aten.relu.default" and re.match("aten.fake_quantize_per_(tensor|channel)_affine", targets[1])
    assert not program.graph_signature.buffers_to_mutate
    quantizer.disable_observer()
    assert torch.equal(program.module()(x), module(x))
    quantizer.enable_observer(True)
    assert module.part[1] is quantizer
    for name, value in module.state_dict().items():
        if "observer_enabled" not in name:
            assert torch.equal(value, before[name]), name


def test_learnable_ranges() -> None:
    learnable: Any = _LearnableFakeQuantize
    quantizer = learnable(ao.MovingAverageMinMaxObserver, scale=0.02, zero_point=5.0, quant_min=0, quant_max=255).eval()
    quantizer.enable_param_learning()
    x = rand(4, 3)
    program = captured(Net(quantizer).eval(), x).program
    torch.testing.assert_close(program.module()(x), quantizer(torch.relu(x)))


def test_the_batch_may_be_dynamic() -> None:
    module = Net(fake_quantizers()[0]).eval()
    program = captured(module, Input(min_shape=(1, 3), opt_shape=(4, 3), max_shape=(9, 3))).program
    module.apply(ao.disable_observer)
    assert torch.equal(program.module()(rand(7, 3)), module(rand(7, 3)))


def test_one_that_is_switched_off_does_nothing() -> None:
    quantizer = fake_quantizers()[0]
    quantizer.disable_fake_quant()
    program = captured(Net(quantizer).eval(), rand(4, 3)).program
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == ["aten.relu.default"]


def test_layers_of_torch_ao_with_weights_that_are_fake_quantized() -> None:
    config: Any = ao.get_default_qat_qconfig("x86")  # type: ignore[no-untyped-call]
    module = nn.Sequential(qat.Conv2d(3, 4, 3, qconfig=config), nn.Flatten(), qat.Linear(64, 5, qconfig=config))
    module(rand(2, 3, 6, 6))
    module.eval().apply(ao.disable_observer)
    program = captured(module, rand(2, 3, 6, 6)).program
    assert sum("fake_quantize" in str(node.target) for node in program.graph.nodes) == 2
    assert torch.equal(program.module()(rand(2, 3, 6, 6)), module(rand(2, 3, 6, 6)))


def test_the_module_is_restored_when_tracing_fails() -> None:
    quantizer = fake_quantizers()[0]
    module = Net(quantizer)
    with pytest.raises(RuntimeError, match="stop"), fixed_ranges(module):
        assert module.part[1] is not quantizer
        raise RuntimeError("stop")
    assert module.part[1] is quantizer


def test_the_model_may_be_one() -> None:
    quantizer, x = fake_quantizers()[0], rand(4, 3)
    program = captured(quantizer, x).program
    quantizer.disable_observer()
    assert torch.equal(program.module()(x), quantizer(x))


def test_one_that_never_observed_anything_is_refused() -> None:
    for quantizer in (ao.default_fake_quant(), ao.default_fused_per_channel_wt_fake_quant()):
        with pytest.raises(CaptureError, match=r"part\.1 is a \w+ that never observed anything, so it has no range; train"):
            captured(Net(quantizer).eval(), rand(4, 3))


@pytest.mark.parametrize(
    ("scale", "point", "why"),
    [
        (float("inf"), 0, "the scale inf, and a scale is a finite number"),
        (float("nan"), 0, "the scale nan, and a scale is a finite number"),
        (0.0, 0, "the scale 0, and a scale is positive"),
        (-0.5, 0, "the scale -0.5, and a scale is positive"),
        (1e-40, 0, "whose reciprocal float32 cannot hold"),
        (0.5, 300, "the zero point 300, which lies outside 0..127"),
    ],
)
def test_unusable_ranges_are_refused(scale: float, point: int, why: str) -> None:
    quantizer = fake_quantizers()[0]
    quantizer.scale.fill_(scale)
    quantizer.zero_point.fill_(point)
    with pytest.raises(CaptureError, match=rf"part\.1 has .*{re.escape(why)}.*; train it on, or calibrate it, before compiling"):
        captured(Net(quantizer).eval(), rand(4, 3))


def test_the_channel_is_named() -> None:
    quantizer = fake_quantizers()[2]
    quantizer.scale[2] = 0
    with pytest.raises(CaptureError, match="the scale 0 in channel 2, and a scale is positive"):
        captured(Net(quantizer).eval(), rand(4, 3))


def test_ranges_in_an_exported_program_are_checked() -> None:
    class Traced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([0.1, float("inf"), 0.1]))
            self.register_buffer("point", torch.zeros(3, dtype=torch.int32))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fake_quantize_per_channel_affine(x, self.get_buffer("scale"), self.get_buffer("point"), 1, -128, 127)

    program = torch.export.export(Traced(), (rand(4, 3),))
    with pytest.raises(
        CaptureError, match=r"fake_quantize_per_channel_affine\.default \(.*test_ranges.* has the scale inf in channel 1"
    ):
        capture(program)
    plain = torch.export.export(Calls(), (rand(4, 3),))
    with pytest.raises(CaptureError, match="has the scale 0, and a scale is positive"):
        capture(plain)


class Calls(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, 0.0, 0, -128, 127)
