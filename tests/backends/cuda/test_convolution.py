"""Convolution kernels compile for every architecture, with wide loads and tensor cores where shapes allow; fusion and refusals."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from tests.backends.cuda.simulated import graph_of
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.convolution import by_taps
from torchsmith.errors import Unsupported

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")


class Two(nn.Module):
    """A 1×1 convolution, so that the second one's picture is channels-last."""

    def __init__(self, channels: int, filters: int, kernel: int, **options: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, filters, kernel, **options)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y.relu()


def emission(module: nn.Module, *inputs: Any) -> Emission:
    """Of the last convolution."""
    graph = fuse(graph_of(module, inputs))
    node = [n for n in graph.nodes if isinstance(n.op, Fused) and n.op.kind == "convolution"][-1]
    return Emission(node, place(graph), Packed(graph.constants))


def launches(e: Emission, template: str, **changes: Any) -> list[Launch]:
    """The steps of the template's best guess."""
    chosen = tactics.template(template)
    chosen.emit(e, replace(chosen.configs(e)[0], **changes))
    return [s for s in e.steps if isinstance(s, Launch)]


@interpreted
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch: int) -> None:
    split = emission(Two(256, 256, 3, padding=1), torch.randn(1, 256, 14, 14))
    stem = emission(nn.Conv2d(3, 64, 7, stride=2, padding=3), torch.randn(1, 3, 64, 64))
    steps = [*launches(split, "convolution", split=4), *launches(stem, "stem")]
    assert [s.kernel.function for s in steps] == ["convolution", "sum_parts", "stem"]
    assert all(isinstance(compile_kernel(s.kernel, arch), Cubin) for s in steps)


@interpreted
def test_compiles_for_dynamic_sizes() -> None:
    sizes = torchsmith.Input(min_shape=(1, 64, 8, 8), opt_shape=(2, 64, 16, 16), max_shape=(4, 64, 32, 32))
    (step,) = launches(emission(Two(64, 64, 3, padding=1), sizes), "convolution")
    assert isinstance(compile_kernel(step.kernel, 90), Cubin)


def test_the_picture_is_cast_as_it_is_loaded() -> None:
    e = emission(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8))
    assert isinstance(e.node.op, Fused)
    assert [type(n.op).__name__ for n in e.node.op.body.nodes] == ["Cast", "Convolution", "Cast"]
    with pytest.raises(Unsupported, match="computed as it loads"):
        tactics.template("convolution").configs(e)


def test_with_many_channels_the_cast_stays_outside() -> None:
    e = emission(nn.Conv2d(16, 8, 3), torch.randn(1, 16, 8, 8))
    assert isinstance(e.node.op, Fused)
    assert type(e.node.op.body.nodes[0].op).__name__ == "Convolution"
    with pytest.raises(Unsupported, match="channels are not innermost"):
        tactics.template("convolution").configs(e)


def test_few_channels_are_refused() -> None:
    e = emission(Two(9, 8, 3), torch.randn(1, 9, 8, 8))
    with pytest.raises(Unsupported, match="9 channels a group"):
        tactics.template("convolution").configs(e)


def test_too_many_elements_are_refused() -> None:
    sizes = torchsmith.Input(min_shape=(1, 64, 64, 64), opt_shape=(2, 64, 64, 64), max_shape=(9000, 64, 64, 64))
    e = emission(Two(64, 64, 3, padding=1), sizes)
    with pytest.raises(Unsupported, match="offsets are 32-bit"):
        tactics.template("convolution").configs(e)


@pytest.mark.parametrize(("images", "first"), [(1, "convolution"), (128, "cudnn")])
def test_the_library_comes_first_for_large_convolutions(images: int, first: str) -> None:
    e = emission(nn.Sequential(Two(64, 64, 3, padding=1), nn.Conv2d(64, 8, 1)), torch.empty(images, 64, 56, 56))
    found, _ = tactics.tactics_of(e)
    assert found[0].template == first
    assert {t.template for t in found} >= {"convolution", "cudnn"}


def test_weights_of_small_groups_stand_on_a_diagonal() -> None:
    weight = torch.arange(1.0, 17.0).reshape(8, 2, 1, 1)  # 4 groups of 2 filters over 2 channels, as 2 groups
    packed = by_taps(weight, 4, 2, 8)
    assert packed.shape == (8, 1, 8)
    assert packed[0, 0].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert packed[2, 0].tolist() == [0, 0, 5, 6, 0, 0, 0, 0]
