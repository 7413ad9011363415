"""Layers as products of matrices: what comes out is what the layer gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchsmith.config import Config
from torchsmith.convert import parameters_of
from torchsmith.lower.editing import argument
from torchsmith.quantize.columns import Columns
from torchsmith.quantize.moments import Moments, in_parts
from torchsmith.quantize.post_training import quantize
from torchsmith.quantize.weighted import weighted
from torchsmith.testing.pipeline import Pipeline


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 4), (3, 2, 6)),
    (Product(), (3, 6)),
    (nn.Conv1d(6, 4, 3, 2, 1), (2, 6, 11)),
    (nn.Conv2d(6, 8, 3, 2, 1, groups=2), (2, 6, 9, 8)),
    (nn.Conv2d(6, 6, (5, 3), (1, 2), (2, 0), (1, 2), groups=6), (2, 6, 9, 12)),
    (nn.Conv2d(6, 4, (2, 3), padding="same"), (2, 6, 7, 8)),
    (nn.Conv2d(6, 4, 3, padding="valid"), (2, 6, 7, 8)),
    (nn.Conv3d(6, 4, (1, 2, 3), padding=(0, 1, 1)), (2, 6, 4, 5, 6)),
]


@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=[str(module) for module, _ in LAYERS])
def test_rows_times_weights_are_what_the_layer_gives(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    program = Pipeline(module.eval(), x).capture().lower().lowered.program
    (layer,) = weighted(program).values()
    columns = Columns.of(layer)
    assert columns is not None
    weight = parameters_of(program)[layer.weight.name]
    rows, weights = columns.inputs(x), columns.weights(weight)
    assert torch.equal(columns.back(weights, weight), weight)
    some = torch.tensor([rows.shape[1] - 1, 0, 2])
    assert torch.equal(columns.inputs(x, lambda count: some if count == rows.shape[1] else None), rows[:, some])
    given = rows @ weights.transpose(1, 2)  # (groups, rows, channels of one)
    given = given.permute(1, 0, 2).flatten(1) + (argument_of_bias(layer.node, program) if layer.node.args else 0)
    with torch.no_grad():
        wanted = module(x)
    wanted = wanted.movedim(1, -1) if columns.kernel else wanted
    torch.testing.assert_close(given, wanted.flatten(0, -2), rtol=1e-5, atol=1e-5)


def argument_of_bias(node: Any, program: Any) -> Tensor:
    bias = argument(node, "self" if "addmm" in str(node.target) else "bias")
    return parameters_of(program)[bias.name]


def test_transposed_convolutions_are_none() -> None:
    program = Pipeline(nn.ConvTranspose2d(4, 3, 2, 2).eval(), torch.randn(1, 4, 5, 5)).capture().lower().lowered.program
    (layer,) = weighted(program).values()
    assert Columns.of(layer) is None


def test_layers_on_one_input_share_its_moments() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    program = Pipeline(Both().eval(), torch.randn(5, 6)).capture().lower().lowered.program
    layers = list(weighted(program).values())
    moments = Moments(layers, {layer.node: lambda x: x for layer in layers})
    x = torch.randn(50, 6)
    for layer in layers:
        moments.look(layer.node, None, {layer.x: x})
    (sums,) = moments.sums.values()
    assert sums.count == 50 and sums.second is not None
    torch.testing.assert_close(sums.second[0], x.T @ x)
    assert list(in_parts(layers)) == [layers]


def test_fewer_calibration_images_than_columns_lose_less_than_rounding_to_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    ).eval()
    mixing = torch.randn(8, 8)
    data = [torch.einsum("bchw,dc->bdhw", torch.randn(4, 8, 10, 10), mixing) for _ in range(12)]
    options = Config.from_options(enabled_precisions={torch.float32, torch.int8}, calibrator=data[:8]).quantize
    lowered = Pipeline(model, data[0]).capture().lower().lowered

    def error() -> float:
        program = quantize(lowered, options).program.module()
        with torch.no_grad():
            return float(torch.stack([(program(x) - model(x)).square().mean() for x in data[8:]]).mean())

    ours = error()
    monkeypatch.setattr(Moments, "offsets", lambda *_: None)
    assert ours < 0.9 * error()
