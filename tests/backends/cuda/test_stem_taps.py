"""The first convolution's template for large pictures compiles for every architecture, loads wide and uses tensor cores."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

import torchsmith
from tests.backends.cuda.test_convolution import emission
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.steps import Launch
from torchsmith.errors import Unsupported

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")


def step_of(module: nn.Module, inputs: Any, index: int = 0) -> Launch:
    e, chosen = emission(module, inputs), tactics.template("stem_taps")
    chosen.emit(e, chosen.configs(e)[index])
    (step,) = (s for s in e.steps if isinstance(s, Launch))
    return step


@interpreted
@pytest.mark.parametrize(
    ("arch", "filters", "kernel", "batch"), [(80, 64, 7, 128), (90, 64, 7, 128), (90, 32, 3, 64), (90, 64, 7, 1), (100, 64, 7, 128)]
)
def test_compiles(arch: int, filters: int, kernel: int, batch: int) -> None:
    module = nn.Conv2d(3, filters, kernel, stride=2, padding=kernel // 2)
    step = step_of(module, torch.randn(1, 3, 224, 224).expand(batch, 3, 224, 224))
    assert isinstance(compile_kernel(step.kernel, arch), Cubin)


@interpreted
def test_compiles_for_dynamic_sizes() -> None:
    sizes = torchsmith.Input(min_shape=(1, 3, 32, 32), opt_shape=(2, 3, 224, 224), max_shape=(8, 3, 256, 256))
    assert isinstance(compile_kernel(step_of(nn.Conv2d(3, 16, 3, padding=1), sizes).kernel, 90), Cubin)


def test_few_pixels_are_left_to_the_other_template() -> None:
    with pytest.raises(Unsupported, match="12544 pixels, 27 channels and taps"):
        step_of(nn.Conv2d(3, 32, 3, stride=2, padding=1), torch.randn(1, 3, 224, 224))
