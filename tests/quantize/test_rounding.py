"""Rounding by second moments: less error than rounding to the nearest, and never more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchsmith.quantize.rounding import nearest, rounded
from torchsmith.sparsity import is_two_four, two_four_mask


def problem(groups: int, rows: int, columns: int, seen: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, its steps, and inputs whose columns go together."""
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(groups, rows, columns, generator=generator)
    mixing = torch.randn(groups, columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(groups, seen, columns, generator=generator) @ mixing + 0.5
    return weight, weight.abs().amax(-1) / 127, inputs


def change(inputs: Tensor, weight: Tensor, whole: Tensor, steps: Tensor) -> Tensor:
    return (inputs @ (whole * steps[..., None] - weight).transpose(1, 2)).square().mean(1)


@pytest.mark.parametrize(
    ("groups", "rows", "columns", "seen"), [(1, 7, 33, 400), (1, 16, 200, 2000), (5, 8, 9, 300), (2, 3, 65, 700)]
)
def test_results_change_less_than_by_rounding_to_the_nearest(groups: int, rows: int, columns: int, seen: int) -> None:
    weight, steps, inputs = problem(groups, rows, columns, 2 * seen)
    shown, others = inputs.split(seen, 1)
    whole = rounded(weight, steps, 127, shown.transpose(1, 2) @ shown / seen, seen)
    assert torch.equal(whole, whole.round()) and float(whole.abs().max()) <= 127
    plain = nearest(weight, steps, 127)
    assert float(change(others, weight, whole, steps).mean()) < 0.7 * float(change(others, weight, plain, steps).mean())


def test_inputs_that_do_not_go_together_are_rounded_to_the_nearest() -> None:
    weight, steps, _ = problem(1, 4, 20, 1)
    assert torch.equal(rounded(weight, steps, 127, torch.eye(20)[None], 1000), nearest(weight, steps, 127))


def test_no_inputs_and_weights_of_zero_are_no_trouble() -> None:
    weight, steps, _ = problem(1, 4, 20, 1)
    weight[0, 1] = 0
    steps[0, 1] = 1.0
    assert torch.equal(rounded(weight, steps, 127, torch.zeros(1, 20, 20), 8), nearest(weight, steps, 127))


def test_fewer_inputs_than_columns_are_enough_to_gain() -> None:
    weight, steps, inputs = problem(1, 16, 128, 1000)
    shown = inputs[:, :32]
    whole = rounded(weight, steps, 127, shown.transpose(1, 2) @ shown / 32, 32)
    plain = nearest(weight, steps, 127)
    assert float(change(inputs, weight, whole, steps).mean()) < float(change(inputs, weight, plain, steps).mean())


def test_pruned_weights_stay_pruned() -> None:
    weight, steps, inputs = problem(1, 16, 64, 400)
    mask = two_four_mask(weight, 2)
    weight = weight * mask
    whole = rounded(weight, steps, 127, inputs.transpose(1, 2) @ inputs / 400, 400)
    plain = nearest(weight, steps, 127)
    assert not bool(whole[~mask].any()) and is_two_four(whole, 2)
    assert float(change(inputs, weight, whole, steps).mean()) < 0.8 * float(change(inputs, weight, plain, steps).mean())


@pytest.mark.parametrize("size", [1e19, 1e25, float("inf"), float("nan")])
def test_moments_that_overflow_are_rounded_without(size: float) -> None:
    weight, steps, inputs = problem(1, 4, 20, 40)
    moments = inputs.transpose(1, 2) @ inputs
    moments[0, 3] *= size
    moments[0, :, 3] *= size
    assert torch.isfinite(rounded(weight, steps, 127, moments, 40)).all()
