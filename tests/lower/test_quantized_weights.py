"""Batch norm after a layer whose weight is fake-quantized: the steps are scaled, and the integers stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.lower.programs import applied, exported, ops
from torchsmith.lower.fold_batch_norm import fold_batch_norm
from torchsmith.lower.fold_constants import fold_constants
from torchsmith.lower.quantized_weights import QuantizedWeight
from torchsmith.testing.op_case import rand


class Trained(nn.Module):
    """A convolution of a fake-quantized weight, then a batch norm with scales of both signs, and a zero."""

    def __init__(self, low: int = -127, high: int = 127, channels: bool = True, gammas: Tensor | None = None) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        steps = self.convolution.weight.detach().abs().flatten(1).amax(1) / 127
        self.register_buffer("steps", steps if channels else steps.amax().reshape(1))
        self.register_buffer("points", torch.zeros(4 if channels else 1, dtype=torch.int32))
        self.low, self.high, self.channels = low, high, channels
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.5, -2.0, 0.0, 3.0]) if gammas is None else gammas)
            self.norm.running_var.copy_(torch.tensor([0.1, 0.5, 2.0, 4.0]))  # type: ignore[union-attr]
            self.norm.running_mean.copy_(torch.tensor([0.1, -0.5, 0.3, 0.0]))  # type: ignore[union-attr]

    def weight(self) -> Tensor:
        weight, steps, points = self.convolution.weight, self.get_buffer("steps"), self.get_buffer("points")
        if self.channels:
            return torch.fake_quantize_per_channel_affine(weight, steps, points, 0, self.low, self.high)
        return torch.fake_quantize_per_tensor_affine(weight, steps, points, self.low, self.high)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.convolution._conv_forward(x, self.weight(), self.convolution.bias))
        return y


@pytest.mark.parametrize("channels", [True, False], ids=["per channel", "per tensor"])
def test_steps_take_the_scale(channels: bool) -> None:
    program = applied(fold_batch_norm, exported(Trained(channels=channels), rand(2, 3, 6, 6)))
    assert ops(program) == ["fake_quantize_per_channel_affine", "conv2d"]


def test_what_follows_may_be_folded_step_by_step() -> None:
    """As torch.ao's fused modules have it: divided by the scale that the weight was multiplied by, then normalised."""

    divisor, bias = torch.tensor([2.0, -0.5, 1.5, 3.0]), rand(4)

    class Fused(Trained):
        def forward(self, x: Tensor) -> Tensor:
            y = self.convolution._conv_forward(x, self.weight(), torch.zeros(4)) / divisor.reshape(1, -1, 1, 1)
            z: Tensor = self.norm(y + bias.reshape(1, -1, 1, 1))
            return z

    program = applied(fold_constants, exported(Fused(), rand(2, 3, 6, 6)))
    assert ops(applied(fold_batch_norm, program)) == ["fake_quantize_per_channel_affine", "conv2d"]


def test_a_weight_that_is_shared_stays() -> None:
    class Shared(Trained):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight()
            y: Tensor = self.norm(torch.conv2d(x, weight)) + torch.conv2d(x, weight)
            return y

    program = applied(fold_batch_norm, exported(Shared(), rand(2, 3, 6, 6)))
    assert "batch_norm" in ops(program)


def test_a_range_that_has_no_negative_of_its_least_stays_where_the_sign_changes() -> None:
    module = Trained(-128, 127)
    with torch.no_grad():
        module.convolution.weight[1, 0, 0, 0] = -10.0
    assert "batch_norm" in ops(applied(fold_batch_norm, exported(module, rand(2, 3, 6, 6))))
    positive = Trained(-128, 127, gammas=torch.tensor([0.5, 2.0, 0.1, 3.0]))
    assert "batch_norm" not in ops(applied(fold_batch_norm, exported(positive, rand(2, 3, 6, 6))))


def test_steps_that_would_overflow_stay() -> None:
    weight = QuantizedWeight(rand(2, 3), torch.tensor([0.1]), torch.zeros(1), -127, 127)
    assert weight.scaled(torch.tensor([1.0, 1e39], dtype=torch.float64)) is None
    assert weight.scaled(torch.tensor([1.0, 1e-44], dtype=torch.float64)) is None
    scaled = weight.scaled(torch.tensor([2.0, -4.0], dtype=torch.float64))
    assert scaled is not None
    assert torch.equal(scaled.integers() * torch.tensor([[1.0], [-1.0]]), weight.integers())
    assert torch.equal(scaled.step, torch.tensor([0.2, 0.4]))


def test_zero_points_stay_with_their_channels() -> None:
    points = torch.tensor([3, -7])
    weight = QuantizedWeight(rand(2, 30), torch.tensor([0.1, 0.2]), points, -128, 127)
    scaled = weight.scaled(torch.tensor([3.0, 0.25], dtype=torch.float64))
    assert scaled is not None and torch.equal(scaled.zero_point, points)
    assert torch.equal(scaled.integers(), weight.integers())
