"""Channels made as large as each other before they are rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchsmith.config import Config
from torchsmith.ptq import CacheCalibrator, DataLoaderCalibrator
from torchsmith.quantize.equalise import shares_of_channels
from torchsmith.quantize.post_training import Quantized, quantize
from torchsmith.testing.compare import relative_error
from torchsmith.testing.pipeline import Pipeline

aten = torch.ops.aten


class Tokens(nn.Module):
    """A norm with one channel of fifty times the others, and two linear layers on it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.left, self.right = nn.LayerNorm(32), nn.Linear(32, 16), nn.Linear(32, 8)
        with torch.no_grad():
            self.norm.weight[5] = 50

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        return self.left(x), self.right(x)


def quantized(model: nn.Module, calibrator: object) -> Quantized:
    lowered = Pipeline(model.eval(), torch.randn(4, 6, 32)).capture().lower().lowered
    options = Config.from_options(enabled_precisions={torch.float32, torch.int8}, calibrator=calibrator)
    return quantize(lowered, options.quantize)


def test_one_large_channel_costs_the_others_nothing() -> None:
    torch.manual_seed(0)
    model, data = Tokens(), [torch.randn(4, 6, 32) for _ in range(16)]
    found = quantized(model, data)
    assert found.calibration is not None
    (shares,) = found.calibration.shares.values()
    assert len(shares) == 32 and max(shares) == shares[5] and shares[5] > 10 * sorted(shares)[16]
    (product,) = (node for node in found.program.graph.nodes if node.target is aten.mul.Tensor)
    (rounded,) = product.users
    assert rounded.target is aten.fake_quantize_per_tensor_affine.default and len(rounded.users) == 2
    with torch.no_grad():
        for given, wanted in zip(found.program.module()(data[0]), model(data[0]), strict=True):
            assert 0 < relative_error(given, wanted) < 0.01


def test_the_cache_has_the_shares(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data, file = Tokens(), [torch.randn(4, 6, 32) for _ in range(16)], tmp_path / "calibration.json"
    first, again = quantized(model, DataLoaderCalibrator(data, cache_file=file)), quantized(model, CacheCalibrator(file))
    assert first.calibration == again.calibration
    with torch.no_grad():
        for given, wanted in zip(again.program.module()(data[0]), first.program.module()(data[0]), strict=True):
            assert torch.equal(given, wanted)


def test_channels_of_like_size_stay_as_they_are() -> None:
    greatest = torch.full((32,), 3.0)
    assert (
        shares_of_channels(greatest, torch.ones(32), torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), 1000) is None
    )
    assert shares_of_channels(torch.zeros(32), torch.zeros(32), torch.ones(8, 32), 1000) is None


def test_channels_that_nothing_was_seen_of_get_finite_shares() -> None:
    greatest = torch.tensor([100.0, 0.0, 1.0, 1.0] * 4)
    shares = shares_of_channels(greatest, greatest.square() / 9, torch.ones(8, 16), 1000)
    assert shares is not None and bool(torch.isfinite(shares).all()) and bool((shares > 0).all())


@pytest.mark.parametrize("count", [3, 30])
def test_few_rows_do_not_make_others_saturate(count: int) -> None:
    torch.manual_seed(0)
    model, data, others = (
        nn.Sequential(nn.Linear(32, 64, bias=False), nn.GELU(), nn.Linear(64, 3)),
        [torch.randn(4, 6, 32) for _ in range(count)],
        [torch.randn(4, 6, 32) for _ in range(20)],
    )
    made = quantized(model, data).program.module()
    with torch.no_grad():
        given, wanted = (torch.cat([module(x) for x in others]) for module in (made, model))
    assert relative_error(given, wanted) < 0.025
