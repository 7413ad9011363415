"""Squeeze-and-excite, alone and after a depthwise convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import Simulated, check, graph_of, relative
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.kernels.depthwise import twin as depthwise_twin
from torchsmith.backends.cuda.kernels.squeeze_excite import twin
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.simulate import simulate
from torchsmith.backends.cuda.tactics import depthwise_gate, squeeze_excite


class Gate(nn.Module):
    def __init__(self, channels: int, units: int, gate: Any = torch.sigmoid, bias: bool = True) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, units, 1, bias=bias), nn.Conv2d(units, channels, 1, bias=bias)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """What EfficientNet repeats: depthwise convolution, gate, 1×1 convolution."""

    def __init__(self, channels: int, units: int, kernel: int, stride: int, gate: Any = torch.sigmoid) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
        self.gate, self.project = Gate(channels, units, gate), nn.Conv2d(channels, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.conv(x))
        projected: Tensor = self.project(y * self.gate(y))
        return projected


def ours(found: Simulated) -> list[str]:
    """The kernels without the cast of the input."""
    return [k for k in found.kernels if k != "pointwise"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("images", [1, 3])
def test_gate_alone(images: int, dtype: torch.dtype) -> None:
    found = check(Gate(20, 6), torch.randn(images, 20, 5, 7), dtype=dtype)
    assert ours(found) == ["squeeze", "excite"]


def test_gate_without_biases_and_of_one_pixel() -> None:
    assert ours(check(Gate(72, 24, F.hardsigmoid, bias=False), torch.randn(2, 72, 1, 1))) == ["squeeze", "excite"]


def test_after_a_depthwise_convolution() -> None:
    found = check(Block(24, 10, 3, 2, F.hardsigmoid), torch.randn(2, 24, 7, 6))
    assert ours(found) == ["depthwise", "excite", "gemm"]


class Shared(nn.Module):
    """A gate that another branch adds to: its layers must not wait for what their own kernels give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(8, 8, 3, padding=1, groups=8), Gate(8, 4, nn.Identity())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y * torch.sigmoid(self.gate(y) + y.amax((2, 3), keepdim=True)), y


def test_a_gate_that_needs_more_than_the_mean() -> None:
    found = check(Shared(), torch.randn(1, 8, 3, 3))
    assert ours(found)[:2] == ["depthwise", "excite"]


def node_of(module: nn.Module, x: Tensor, kind: str) -> tuple[Any, Emission, Packed]:
    graph = fuse(graph_of(module, [x], torch.float32))
    views, packed = place(graph), Packed(graph.constants)
    (node,) = [n for n in graph.nodes if isinstance(n.op, Fused) and n.op.kind == kind]
    return graph, Emission(node, views, packed), packed


@pytest.mark.parametrize("config", [
    squeeze_excite.SqueezeExciteConfig(4, 8, 3, 1, 1, 8, 1), squeeze_excite.SqueezeExciteConfig(16, 32, 1, 4, 2, 32, 2),
    squeeze_excite.SqueezeExciteConfig(8, 16, 2, 2, 4, 16, 4), squeeze_excite.SqueezeExciteConfig(8, 8, 3, 1, 64, 16, 4),
])  # fmt: skip
def test_configurations_of_the_gate(config: squeeze_excite.SqueezeExciteConfig) -> None:
    module, x = Gate(20, 6).requires_grad_(False), torch.randn(3, 20, 5, 7)
    graph, e, packed = node_of(module, x, "squeeze_excite")
    squeeze_excite.TEMPLATE.emit(e, config)
    (gate,) = simulate(e.steps, {graph.inputs[0]: x}, graph.outputs, packed.tensors, e.views, {})
    first, second = module.reduce, module.expand
    wanted = twin(x, first.weight.flatten(1), first.bias, F.silu, second.weight.flatten(1), second.bias, torch.sigmoid)
    assert relative([gate.flatten(1)], [wanted]) < 1e-6


@pytest.mark.parametrize("config", [
    depthwise_gate.DepthwiseGateConfig(8, 1, 3, 2, 1, 1, True, 1, 8, 1),
    depthwise_gate.DepthwiseGateConfig(32, 2, 2, 1, 2, 2, False, 2, 32, 2),
    depthwise_gate.DepthwiseGateConfig(4, 5, 7, 1, 1, 1, True, 2, 32, 2),
    depthwise_gate.DepthwiseGateConfig(32, 4, 4, 1, 2, 1, True, 16, 16, 2),
])  # fmt: skip
def test_configurations_with_the_convolution(config: depthwise_gate.DepthwiseGateConfig) -> None:
    module, x = Both().requires_grad_(False), torch.randn(3, 20, 5, 7)
    graph, e, packed = node_of(module, x, "depthwise_gate")
    depthwise_gate.TEMPLATE.emit(e, config)
    found = simulate(e.steps, {graph.inputs[0]: x}, graph.outputs, packed.tensors, e.views, {})
    conv, first, second = module.conv, module.gate.reduce, module.gate.expand
    y, sums = depthwise_twin(x, conv.weight, conv.bias, F.hardswish, (1, 1), ((1, 1), (1, 1)), (1, 1), first.weight.flatten(1))
    assert sums is not None and first.bias is not None and second.bias is not None
    hidden = F.silu(sums / 35 + first.bias)
    gate = torch.sigmoid(hidden @ second.weight.flatten(1).T + second.bias)
    assert relative([found[0], found[1].flatten(1)], [y, gate]) < 1e-6


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(20, 20, 3, padding=1, groups=20), Gate(20, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.hardswish(self.conv(x))
        return y, self.gate(y)
