"""Which values of a program are quantized, and for whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.quantize.nets import Gated
from torchsmith.quantize.abilities import Int8Abilities
from torchsmith.quantize.placement import Placement, place
from torchsmith.testing.pipeline import Pipeline


class Head(nn.Module):
    """Convolutions, their activated result or its sum with what came before, averaged, and a classifier."""

    def __init__(self, adds: bool, normed: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.norm = nn.LayerNorm(6) if normed else nn.Identity()
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.second(x)
        y = torch.nn.functional.silu(self.norm(y + x if self.adds else y))
        return self.last(y.mean((2, 3)))  # type: ignore[no-any-return]


def placed(model: nn.Module) -> Placement:
    road = Pipeline(model.eval(), torch.randn(2, 8, 6, 6)).capture().lower()
    return place(road.lowered.program)


def users(placement: Placement) -> dict[str, set[str]]:
    return {point.node.name: {user.name for user in point.users} for point in placement.points}


@pytest.mark.parametrize("adds", [False, True])
def test_what_is_averaged_for_a_layer_is_int8_before_and_after(adds: bool) -> None:
    found = users(placed(Head(adds)))
    assert found["silu"] == {"mean"} and found["mean"] == {"linear"}
    assert ("add" in found["relu"] and found["conv2d_1"] == {"add"}) if adds else found["relu"] == {"conv2d_1"}


def test_what_no_layer_gives_is_averaged_as_it_is() -> None:
    found = users(placed(Head(adds=False, normed=True)))
    assert "silu" not in found and found["mean"] == {"linear"}


@pytest.mark.parametrize("gated", [True, False])
def test_what_a_gate_scales_or_what_it_gives_is_quantized(gated: bool) -> None:
    road = Pipeline(Gated().eval(), torch.randn(2, 8, 6, 6)).capture().lower()
    found = place(road.lowered.program, int8=Int8Abilities(gated=gated))
    by_name = users(found)
    assert by_name.get("mul") == ({"conv2d_2"} if gated else None)
    assert by_name.get("relu", set()) == (set() if gated else {"mul", "mean"})
    assert {"conv2d_2"} & {layer.node.name for layer in found.layers} == ({"conv2d_2"} if gated else set())


@pytest.mark.parametrize(("size", "pixels", "quantized"), [(3, True, False), (7, True, True), (7, False, False)])
def test_large_kernels_on_pixels_are_quantized_where_engines_gain_by_them(size: int, pixels: bool, quantized: bool) -> None:
    road = Pipeline(nn.Conv2d(3, 8, size).eval(), torch.randn(1, 3, 16, 16)).capture().lower()
    found = place(road.lowered.program, int8=Int8Abilities(pixels=pixels))
    assert len(found.layers) == quantized and len(found.kept) == (not quantized)


@pytest.mark.parametrize("adds", [False, True])
def test_a_layer_whose_kernel_adds_a_residual_rounds_nothing_before_it(adds: bool) -> None:
    road = Pipeline(Head(adds=True).eval(), torch.randn(2, 8, 6, 6)).capture().lower()
    by_name = users(place(road.lowered.program, int8=Int8Abilities(adds=adds)))
    assert ("conv2d_1" in by_name) == (not adds)
    assert "add" in by_name["relu"], "what it adds is read from memory"
