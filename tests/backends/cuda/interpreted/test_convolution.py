"""Convolutions through the implicit-GEMM and the stem templates, every family of configurations, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith.backends.cuda.kernels.convolution import twin
from torchsmith.backends.cuda.tactics import convolution, stem, stem_taps
from torchsmith.backends.cuda.tactics.convolution import ConvolutionConfig
from torchsmith.backends.cuda.tactics.stem import StemConfig
from torchsmith.errors import Unsupported

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class Block(nn.Module):
    """A convolution that gets a channels-last picture from another, with activation, and a residual where shapes agree."""

    def __init__(self, channels: int, filters: int, kernel: Any, **options: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, filters, kernel, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = F.silu(self.second(x))
        return y + x if y.shape == x.shape else y


class First(nn.Module):
    """A first convolution of what the user gives, normalised before where `scale` is not 1."""

    def __init__(self, channels: int, filters: int, kernel: Any, scale: float = 1.0, **options: Any) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d)[0 if isinstance(kernel, tuple) and len(kernel) == 1 else 1]
        self.conv, self.scale = conv(channels, filters, kernel, **options), scale
        self.mean = nn.Buffer(torch.linspace(-1, 1, channels).reshape(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv((x - self.mean) / self.scale if self.scale != 1 else x)
        return y.relu()


def only(monkeypatch: pytest.MonkeyPatch, template: Any, config: Any) -> None:
    """Make the template offer one configuration, and take the node away from the other convolution templates."""
    for other in (convolution.TEMPLATE, stem_taps.TEMPLATE, stem.TEMPLATE):
        if other is template:
            monkeypatch.setattr(type(other), "configs", lambda self, e: [config])
        else:
            without(monkeypatch, other)


def without(monkeypatch: pytest.MonkeyPatch, template: Any) -> None:
    """Make the template refuse every node."""

    def refuse(self: Any, e: Any) -> Any:
        raise Unsupported("not asked for")

    monkeypatch.setattr(type(template), "configs", refuse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (Block(19, 19, 3, padding=1), (2, 19, 3, 5)),
        (Block(40, 24, (3, 5), stride=2, padding=(1, 0), dilation=(2, 1), bias=False), (1, 40, 7, 9)),
        (Block(64, 17, 1, padding=1), (2, 64, 5, 6)),
    ],
)
def test_channels_last(module: Block, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert check(module, torch.randn(shape), dtype=dtype).kernels.count("convolution") == 1


@pytest.mark.parametrize("groups", [2, 8])
def test_groups_are_taken_together_until_they_fill_a_block(groups: int) -> None:
    found = check(Block(32, 64, 3, padding=1, groups=groups), torch.randn(1, 32, 4, 5))
    (launch,) = [s for s in found.steps if getattr(getattr(s, "kernel", None), "function", "") == "convolution"]
    assert launch.grid[1] == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("config", [c for c in convolution.SHAPES], ids=str)
def test_configurations(config: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, convolution.TEMPLATE, ConvolutionConfig(*config))
    assert "convolution" in check(Block(24, 40, 3, padding=1), torch.randn(1, 24, 5, 7)).kernels


@pytest.mark.parametrize(("split", "groups"), [(2, 1), (4, 2), (7, 1)])
def test_split_sums(split: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, convolution.TEMPLATE, ConvolutionConfig(16, 32, 16, 4, 3, split))
    found = check(Block(48, 48, 3, padding=1, groups=groups), torch.randn(1, 48, 3, 5))
    assert found.kernels[-2:] == ["convolution", "sum_parts"]


def test_the_best_guess_splits_long_sums_over_few_pixels() -> None:
    assert "sum_parts" in check(Block(256, 32, 3, padding=1), torch.randn(1, 256, 3, 3)).kernels


def test_dynamic_sizes() -> None:
    module = Block(16, 24, 3, padding=1, stride=2)
    sizes = torchsmith.Input(min_shape=(1, 16, 4, 6), opt_shape=(2, 16, 8, 6), max_shape=(4, 16, 12, 6))
    graph = graph_of(module, [sizes])
    for batch, height in ((1, 4), (3, 9)):
        found = run(graph, [torch.randn(batch, 16, height, 6)])
        assert "convolution" in found.kernels
        assert found.error <= 1.1 * found.eager_error + 2e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (First(3, 18, 3, stride=2, padding=1), (2, 3, 9, 11)),
        (First(3, 8, 7, scale=0.3, stride=2, padding=3), (1, 3, 8, 10)),
        (First(3, 40, 4, stride=4), (2, 3, 8, 12)),
        (First(2, 8, (5,), stride=2, padding=2), (2, 2, 13)),
        (First(24, 20, (3,), padding=1, groups=2), (2, 24, 7)),
    ],
)
def test_stem(module: First, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, stem_taps.TEMPLATE)
    found = check(module, torch.randn(shape), dtype=dtype)
    assert "stem" in found.kernels
    if shape[1] < 16:  # the cast is in the kernel
        assert [k for k in found.kernels if k.startswith("[") and "Cast" in k] == []


@pytest.mark.parametrize("channels", [3, 24])
@pytest.mark.parametrize(
    "config", [(128, 64, 32, 8), (32, 32, 32, 2), (16, 64, 64, 4, 3), (64, 16, 16, 4), (32, 32, 128, 4)], ids=str
)
def test_stem_configurations(config: tuple[int, ...], channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, stem.TEMPLATE, StemConfig(*config))
    module = First(channels, 20, 3, padding=1) if channels == 3 else Block(channels, 20, 3, padding=1)
    assert "stem" in check(module, torch.randn(1, channels, 6, 7)).kernels


def test_stem_of_bytes() -> None:
    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv((x.float() - 120.0) / 60.0)
            return y

    found = check(Picture(), torch.randint(0, 255, (1, 3, 5, 6), dtype=torch.uint8))
    assert "stem" in found.kernels


def test_twin() -> None:
    x, w = torch.randn(2, 6, 5, 7), torch.randn(4, 3, 3, 3)
    found = twin(x, w, (2, 1), ((1, 0), (1, 1)), (1, 1), 2, torch.relu, torch.float32)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 0)), w, stride=(2, 1), groups=2).relu()
    torch.testing.assert_close(found, expected)
