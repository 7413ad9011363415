"""Depthwise convolutions and squeeze-and-excite compile for every architecture, and what their guesses must keep to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import graph_of
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics import depthwise, depthwise_gate, tactics_of
from torchsmith.backends.cuda.tactics.depthwise import DepthwiseConfig
from torchsmith.backends.cuda.tactics.depthwise_gate import DepthwiseGateConfig


class Block(nn.Module):
    def __init__(self, channels: int, kernel: int, stride: int, units: int) -> None:
        super().__init__()
        self.widen, self.project = nn.Conv2d(8, channels, 1), nn.Conv2d(channels, 8, 1)
        self.conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
        self.reduce, self.expand = nn.Conv2d(channels, units or 1, 1), nn.Conv2d(units or 1, channels, 1)
        self.gated = bool(units)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.conv(F.silu(self.widen(x))))
        if self.gated:
            y = y * torch.sigmoid(self.expand(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        z: Tensor = self.project(y)
        return z


def emission(images: int, channels: int, size: int, kernel: int, stride: int, units: int) -> Emission:
    """Of the depthwise node, with what is fused to it."""
    graph = fuse(graph_of(Block(channels, kernel, stride, units), [torch.zeros(images, 8, size, size)]))
    kind = "depthwise_gate" if units else "depthwise"
    (node,) = [n for n in graph.nodes if isinstance(n.op, Fused) and n.op.kind == kind]
    return Emission(node, place(graph), Packed(graph.constants))


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_compile(arch: int) -> None:
    e = emission(1, 40, 14, 3, 2, 10)
    depthwise_gate.TEMPLATE.emit(e, DepthwiseGateConfig(16, 2, 2, 4, 2, 1, True, 1, 16, 2))
    for step in e.steps:
        assert isinstance(step, Launch)
        assert isinstance(compile_kernel(step.kernel, arch), Cubin)


def test_a_thread_loads_sixteen_bytes() -> None:
    e = emission(128, 72, 28, 3, 1, 0)
    depthwise.TEMPLATE.emit(e, DepthwiseConfig(32, 1, 2, 4, 8, 4, False))
    (step,) = e.steps
    assert isinstance(step, Launch)
    assert {"x", "w", "bias", "y"} <= step.kernel.aligned
    constants: dict[str, Any] = dict(step.kernel.constants)
    assert constants["x_c"] == constants["y_c"] == 1  # channels-last on both sides


def test_many_pictures_go_in_strips() -> None:
    e = emission(128, 128, 7, 3, 1, 16)
    found, _ = tactics_of(e)
    config = found[0].config
    assert isinstance(config, DepthwiseGateConfig) and config.convolution().strips
    depthwise_gate.TEMPLATE.emit(e, config)
    step = e.steps[0]
    assert isinstance(step, Launch) and step.kernel.function == "depthwise_strips"
    assert isinstance(compile_kernel(step.kernel, 80), Cubin)


@pytest.mark.parametrize("images", [1, 128])
@pytest.mark.parametrize(
    "layer",
    [(32, 112, 3, 1, 8), (96, 112, 3, 2, 4), (240, 28, 5, 1, 10), (1152, 7, 5, 1, 48), (960, 7, 5, 1, 240), (16, 112, 3, 1, 0)],
    ids=str,
)
def test_guesses(layer: tuple[int, int, int, int, int], images: int) -> None:
    """Every layer has several ways to run; the best guess fills the device where there is work for it."""
    e = emission(images, *layer)
    found, refusals = tactics_of(e)
    assert 3 <= len(found) <= 12 and len(set(found)) == len(found), refusals
    config = found[0].config
    pixels = (config.tile_h * config.groups_h) * (config.tile_w * config.groups_w)
    outputs = images * layer[0] * (layer[1] // layer[3]) ** 2
    blocks = outputs / (pixels * config.block_c)
    assert blocks >= min(40, outputs / 4096), config
