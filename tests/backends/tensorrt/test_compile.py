"""The road to TensorRT's engines, as a user walks it on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import torchsmith
from torchsmith.backends.tensorrt.engine import parse
from torchsmith.backends.tensorrt.library import installed
from torchsmith.cli import app
from torchsmith.errors import BackendUnavailable, EngineMismatch, FullCompilationRequired, InvalidOption
from torchsmith.runtime.compiled import CompiledModule
from torchsmith.runtime.tensors import to_bytes

if installed() is None:
    pytest.skip("TensorRT is not installed", allow_module_level=True)
X = torch.randn(2, 3, 16, 16)
WITH: dict[str, Any] = {"backend": "tensorrt", "target": "sm_89", "enabled_precisions": {torch.half}, "min_block_size": 1}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return y


class Odd(Net):
    """With something that TensorRT has not: float64."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.double().sum((1, 2, 3))[:, None].float()


def compiled(model: nn.Module, **options: Any) -> CompiledModule:
    made = torchsmith.compile(model.eval(), inputs=[X], **{**WITH, **options})
    assert isinstance(made, CompiledModule)
    return made


def test_a_model_becomes_one_engine() -> None:
    module = compiled(Net(), require_full_compilation=True)
    (call,) = module.plan.engine_calls
    engine = parse(to_bytes(module.program.constants[call.constant]))
    assert call.spec.backend == "tensorrt" and {"convolution", "reduce"} <= {layer.kind for layer in engine.layers}
    conv = next(layer for layer in engine.layers if layer.kind == "convolution")
    assert "conv2d" in conv.name and f"{Path(__file__).name}:" in conv.name and conv.outputs == ("half[2, 8, 8, 8]",)
    with pytest.raises(EngineMismatch, match=r"built for cuda sm_89"):
        module(X)


def test_what_tensorrt_cannot_do_stays_in_pytorch_with_a_reason() -> None:
    module = compiled(Odd())
    reasons = " ".join(str(refusal) for refusal in torchsmith.explain(module).refusals)
    assert module.plan.engine_calls and "TensorRT does not compute in torch.float64" in reasons
    with pytest.raises(FullCompilationRequired):
        compiled(Odd(), require_full_compilation=True)


def test_a_package_is_looked_at_without_tensorrt(tmp_path: Path) -> None:
    torchsmith.save(compiled(Net()), tmp_path / "net.pt2")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.pt2")])
    assert shown.exit_code == 0, shown.output
    assert "layers before TensorRT" in shown.output and "convolution" in shown.output and "half[2, 8, 8, 8]" in shown.output
    asked = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.pt2"), "--json"])
    assert '"kind": "convolution"' in asked.output


def test_tensorrt_s_own_bytes() -> None:
    options = {name: value for name, value in WITH.items() if name not in ("backend", "min_block_size")}
    plan = torchsmith.convert_method_to_trt_engine(Net().eval(), inputs=[X], **options)
    assert isinstance(plan, bytes) and len(plan) > 1000
    with pytest.raises(InvalidOption, match="method_name='predict'; models are compiled by their forward"):
        torchsmith.convert_method_to_trt_engine(Net().eval(), "predict", inputs=[X], **options)


def test_on_a_cpu_it_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="the tensorrt backend is for device cuda, and the model is on cpu"):
        torchsmith.compile(Net().eval(), inputs=[X], backend="tensorrt")


def test_int8_is_symmetric() -> None:
    """TensorRT's int8 has no zero point, and no unsigned numbers."""
    data = [torch.randn(4, 3, 16, 16) for _ in range(3)]
    module = compiled(Net(), enabled_precisions={torch.half, torch.int8}, calibrator=data, require_full_compilation=True)
    (call,) = module.plan.engine_calls
    engine = parse(to_bytes(module.program.constants[call.constant]))
    made = [output for layer in engine.layers if layer.kind == "quantize" for output in layer.outputs]
    assert made and all(output.startswith("int8[") for output in made), engine.layers
