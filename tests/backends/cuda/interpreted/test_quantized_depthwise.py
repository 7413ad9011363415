"""Depthwise convolutions that read and write int8, with the gate of what they give, and the product that the gate scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.interpreted.test_quantized import kernels, pair, signed, unsigned, weights
from tests.backends.cuda.simulated import check, graph_of
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.depthwise import TEMPLATE, DepthwiseConfig
from torchsmith.backends.cuda.tactics.gemm import GemmTemplate
from torchsmith.backends.cuda.tactics.gemm_configs import GemmConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Value
from torchsmith.ops.convolution import Convolution
from torchsmith.ops.unary import Unary

Rounding = Callable[[Tensor, float], Tensor]


def convolved(channels: int, taps: int, stride: int, zero_point: int, dtype: torch.dtype) -> Callable[[Builder, Value], Value]:
    """Sums are exact: weights and scales are few bits."""

    def net(builder: Builder, x: Value) -> Value:
        w = builder.constant(weights(channels, 1, taps, taps).float() / 64)
        side = (taps // 2, (taps - 1) // 2)
        y = Convolution((stride, stride), (side, side), (1, 1), channels)(
            pair(x, 0.0625, zero_point, dtype), w, builder.constant(torch.arange(channels) / 4)
        )
        return pair(Unary("relu")(y), 0.5, 0, torch.uint8)

    return net


@pytest.mark.parametrize(("zero_point", "dtype"), [(0, torch.int8), (5, torch.int8), (-128, torch.int8), (0, torch.uint8)])
@pytest.mark.parametrize(("channels", "taps", "stride"), [(19, 3, 1), (40, 5, 2)])
def test_depthwise(channels: int, taps: int, stride: int, zero_point: int, dtype: torch.dtype) -> None:
    found, wanted, names = kernels(convolved(channels, taps, stride, zero_point, dtype), torch.randn(1, channels, 5, 7))
    assert names[:2] == ["pointwise", "depthwise"] and torch.equal(found, wanted)


CONFIGS = [
    DepthwiseConfig(8, 1, 3, 2, 1, 1, True),
    DepthwiseConfig(32, 2, 2, 1, 2, 2, False),
    DepthwiseConfig(16, 4, 4, 1, 2, 1, True),  # strips
    DepthwiseConfig(32, 7, 5, 1, 1, 1, True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2)])
def test_configurations(config: DepthwiseConfig, taps: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TEMPLATE), "configs", lambda self, e: [config])
    found, wanted, names = kernels(convolved(24, taps, stride, 9, torch.int8), torch.randn(1, 24, 9, 10))
    assert names[1] == ("depthwise_strips" if config.strips else "depthwise") and torch.equal(found, wanted)


class Block(nn.Module):
    """What EfficientNet repeats, as calibration for this engine quantizes it: the gate scales numbers of eight bits."""

    def __init__(self, channels: int, stride: int, act: Any, rounded: Rounding) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
        self.reduce, self.expand = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)
        self.project = nn.Conv2d(channels, 16, 1)
        self.act, self.rounded, self.stride = act, rounded, stride

    def forward(self, x: Tensor) -> Tensor:
        x = self.rounded(self.act(x), 0.02)
        y = self.rounded(self.act(self.conv(x)), 0.01)
        gate = torch.sigmoid(self.expand(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        z = signed(self.project(y * gate), 0.01)
        return z if self.stride > 1 else signed(z + x, 0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("channels", "stride", "rounded"), [(16, 1, unsigned), (24, 2, signed)])
def test_gated_block(channels: int, stride: int, rounded: Rounding, dtype: torch.dtype) -> None:
    block = Block(channels, stride, F.relu if rounded is unsigned else F.silu, rounded)
    found = check(block, torch.randn(2, channels, 8, 7), dtype=dtype, limit=1.5)
    assert found.kernels[:4] == ["pointwise", "depthwise", "excite", "gemm"]
    written = [v.type.dtype for s in found.steps if isinstance(s, Launch) for v in s.writes]
    assert written[:2] == [torch.int8, torch.int8], "what the convolution takes, and what it gives"


GATED = [
    GemmConfig(16, 16, 16, 4, 2),
    GemmConfig(32, 16, 32, 4, 3),
    GemmConfig(16, 16, 16, 4, 2, split_k=2),
    GemmConfig(16, 16, 16, 4, 2, programs=2),
    GemmConfig(16, 16, 16, 2, 2, chains=2),
]


@pytest.mark.parametrize("config", GATED, ids=str)
def test_configurations_of_what_is_scaled(config: GemmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GemmTemplate, "configs", lambda self, e: [config])
    found = check(Block(40, 2, F.relu, unsigned), torch.randn(2, 40, 5, 5), limit=1.5)
    main = ["gemm", "gemm_sum"] if config.split_k > 1 else ["gemm_persistent" if config.programs else "gemm"]
    assert found.kernels[3 : 3 + len(main)] == main


def test_the_gate_and_the_mean_read_integers() -> None:
    graph = fuse(graph_of(Block(16, 2, F.silu, signed), [torch.zeros(2, 16, 8, 8)]))
    assert [n.op.kind for n in graph.nodes if isinstance(n.op, Fused)][:3] == ["pointwise", "depthwise_gate", "gemm"]
    gate, product = (next(n for n in graph.nodes if getattr(n.op, "kind", "") == kind) for kind in ("depthwise_gate", "gemm"))
    assert [v.type.dtype for v in gate.inputs[:1]] == [torch.int8] and gate.outputs[0].type.dtype == torch.int8
    assert gate.outputs[0] in product.inputs
