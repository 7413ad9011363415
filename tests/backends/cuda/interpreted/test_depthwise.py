"""Depthwise convolutions, every configuration of theirs, and what they take along."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.backends.cuda.simulated import SM_90, Simulated, check, graph_of, relative
from torchsmith.backends.cuda import build
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.kernels.depthwise import twin
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.simulate import simulate
from torchsmith.backends.cuda.tactics.depthwise import TEMPLATE, DepthwiseConfig
from torchsmith.config import BuildConfig
from torchsmith.inputs import Input


class Net(nn.Module):
    def __init__(self, channels: int, kernel: int | tuple[int, int] = 3, bias: bool = True, **options: object) -> None:
        super().__init__()
        options.setdefault("padding", kernel // 2 if isinstance(kernel, int) else 0)
        self.conv = nn.Conv2d(channels, channels, kernel, groups=channels, bias=bias, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


class Residual(nn.Module):
    """A residual of another layout, a scale of each channel, and a second depthwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Net(channels), Net(channels, 5)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x) * self.scale + x)
        return y


def ours(found: Simulated) -> list[str]:
    """The kernels without the cast of the input."""
    return [k for k in found.kernels if k != "pointwise"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel, stride, size", [(3, 2, (7, 6)), (5, 1, (3, 5)), (7, 2, (5, 4))])
def test_kernels_and_strides(kernel: int, stride: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    found = check(Net(13, kernel, stride=stride), torch.randn(2, 13, *size), dtype=dtype)
    assert ours(found) == ["depthwise"]


@pytest.mark.parametrize(
    "options",
    [
        dict(dilation=(1, 3), padding=(0, 3), stride=(2, 1)),
        dict(padding="same", kernel=4, bias=False),
        dict(kernel=(4, 1), stride=(3, 2)),
    ],
    ids=str,
)
def test_dilation_and_padding(options: dict[str, object]) -> None:
    given = {"channels": 24, **options}
    assert ours(check(Net(**given), torch.randn(1, 24, 6, 7))) == ["depthwise"]  # type: ignore[arg-type]


def test_residual_and_scale() -> None:
    assert ours(check(Residual(9), torch.randn(1, 9, 4, 5))) == ["depthwise", "depthwise"]


def test_one_dimension() -> None:
    conv = nn.Sequential(nn.Conv1d(12, 12, 5, padding=2, groups=12), nn.GELU())
    assert ours(check(conv, torch.randn(2, 12, 19))) == ["depthwise"]


def test_dynamic_sizes() -> None:
    graph = graph_of(Net(16), [Input((Dim("n", max=8), 16, Dim("h", max=64), Dim("w", max=64)))])
    (emitted,), views, packed = build.emit(graph, SM_90, BuildConfig())
    for n, h, w in ((1, 5, 9), (2, 7, 4)):
        x = torch.randn(n, 16, h, w)
        env = dict(zip((str(s) for s in graph.inputs[0].type.shape if not isinstance(s, int)), (n, h, w), strict=True))
        (y,) = simulate(emitted.steps, {graph.inputs[0]: x}, graph.outputs, packed.tensors, views, env)
        weight, bias = list(graph.constants.values())[:2]
        wanted, _ = twin(x.half(), weight, bias, F.silu, (1, 1), ((1, 1), (1, 1)), (1, 1), None)
        assert relative([y], [wanted]) < 2e-3


@pytest.mark.parametrize("config, stride", [
    (DepthwiseConfig(8, 1, 1, 4, 4, 1, True), 2), (DepthwiseConfig(32, 1, 4, 2, 2, 1, False), 1),
    (DepthwiseConfig(16, 2, 3, 2, 1, 2, False), 1), (DepthwiseConfig(8, 1, 7, 4, 1, 4, True), 1),
    (DepthwiseConfig(16, 3, 2, 1, 4, 1, True), 2),
    (DepthwiseConfig(16, 5, 7, 1, 1, 1, True), 1), (DepthwiseConfig(4, 4, 4, 1, 2, 1, True), 1),
    (DepthwiseConfig(16, 4, 4, 1, 1, 1, True), 2), (DepthwiseConfig(8, 5, 4, 2, 1, 1, True), 1),
])  # fmt: skip
def test_configurations(config: DepthwiseConfig, stride: int) -> None:
    x = torch.randn(2, 12, 5, 7)
    graph = fuse(graph_of(Net(12, 5, stride=stride), [x], torch.float32))
    views, packed = place(graph), Packed(graph.constants)
    (node,) = graph.nodes
    e = Emission(node, views, packed)
    TEMPLATE.emit(e, config)
    (y,) = simulate(e.steps, {graph.inputs[0]: x}, graph.outputs, packed.tensors, e.views, {})
    weight, bias = list(graph.constants.values())[:2]
    wanted, _ = twin(x, weight, bias, F.silu, (stride, stride), ((2, 2), (2, 2)), (1, 1), None)
    assert relative([y], [wanted]) < 1e-6
