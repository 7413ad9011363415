"""Windows of a tensor side by side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchsmith import Input
from torchsmith.testing.op_case import OpCase, rand
from torchsmith.testing.pipeline import Pipeline

CASES: dict[str, OpCase] = {
    "unfold": OpCase(lambda x: x.unfold(1, 3, 2), rand(2, 8, 3), dynamic=[(0, 0)]),
    "unfold twice": OpCase(lambda x: x.unfold(2, 4, 3).unfold(3, 4, 3), rand(1, 2, 10, 10)),
    "unfold of what overlaps, from the end": OpCase(lambda x: x.unfold(-1, 20, 8) * 2, rand(2, 60)),
    "unfold to one window": OpCase(lambda x: x.unfold(0, 5, 1), rand(5)),
    "im2col": OpCase(lambda x: F.unfold(x, 3), rand(2, 3, 5, 7), dynamic=[(0, 0)]),
    "im2col with a step": OpCase(lambda x: F.unfold(x, (2, 3), 1, (1, 0), (2, 1)), rand(2, 3, 5, 7)),
    "im2col with gaps": OpCase(lambda x: F.unfold(x, 2, (2, 3), 2, 1), rand(2, 3, 5, 7)),
    "im2col of one picture": OpCase(lambda x: F.unfold(x, 3, padding=1), rand(3, 5, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_accepted(name: str) -> None:
    CASES[name].accepted()


class Frames(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(-1, 20, 8).square().mean(-1)


def test_a_signal_of_any_length() -> None:
    pipeline = Pipeline(Frames(), Input(min_shape=(2, 40), opt_shape=(2, 60), max_shape=(2, 900)))
    pipeline.capture().lower().partition().build().whole()
    for length in (40, 43, 900):
        pipeline.matches((torch.randn(2, length),))


class Patches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.unfold(x, 3, padding=1, stride=2) * 2


def test_pictures_of_any_size() -> None:
    pipeline = Pipeline(Patches(), Input(min_shape=(1, 3, 8, 8), opt_shape=(2, 3, 16, 16), max_shape=(4, 3, 64, 64)))
    pipeline.capture().lower().partition().build().whole()
    for shape in ((1, 3, 8, 8), (3, 3, 9, 31)):
        pipeline.matches((torch.randn(shape),))
