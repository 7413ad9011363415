"""Small networks trained on digits, and what int8 costs them on the CPU: scikit-learn's, that people wrote, and drawn ones."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import torchsmith
from torchsmith.bench import digits
from torchsmith.bench.accuracy import of_digits
from torchsmith.ptq import CalibrationAlgo, DataLoaderCalibrator

# Three by five, as on a pocket calculator.
GLYPHS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111",
)  # fmt: skip


def drawn(count: int = 1800) -> digits.Digits:
    """Digits at random places in 8 × 8 pixels, of random strength, under noise."""
    generator = torch.Generator().manual_seed(0)
    glyphs = torch.tensor([[float(bit) for bit in glyph] for glyph in GLYPHS]).reshape(10, 5, 3)
    labels = torch.arange(count) % 10
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.1
    for image, label in zip(images, labels, strict=True):
        top, left = (int(torch.randint(1, room, (), generator=generator)) for room in (3, 4))
        image[0, top : top + 5, left : left + 3] += glyphs[label] * (0.8 + 0.4 * torch.rand((), generator=generator))
    order = torch.randperm(count, generator=generator)
    return digits.Digits.split(images.clamp(0, 1.5)[order], labels[order])


@functools.cache
def trained() -> tuple[nn.Module, digits.Digits]:
    data = drawn()
    return digits.trained("convolutional", data), data


def compiled(model: nn.Module, images: Tensor, calibrator: object) -> torch.nn.Module:
    precisions = {torch.float32, torch.int8}
    return torchsmith.compile(model, inputs=[images], enabled_precisions=precisions, calibrator=calibrator, backend="openvino")


@pytest.mark.slow
@pytest.mark.parametrize("name", digits.MODELS)
def test_networks_lose_little_on_digits_that_people_wrote(name: str) -> None:
    pytest.importorskip("sklearn.datasets", reason="scikit-learn, which carries the digits, is not installed")
    figures = of_digits(name)
    assert [figure.limit for figure in figures] == [97.0, 0.5, 0.2]
    assert all(figure.holds for figure in figures), figures


def test_a_network_loses_little_on_drawn_digits_and_computes_in_int8() -> None:
    model, data = trained()
    fast = compiled(model, data.images, data.calibration())
    with torch.no_grad():
        wanted, given = model(data.images), fast(data.images)
    assert digits.points(wanted, data.labels) >= 97
    assert digits.points(given, data.labels) >= digits.points(wanted, data.labels) - 0.5
    assert not torch.equal(given, wanted)
    assert fast.report["options"]["calibrator"] == "list"


@pytest.mark.parametrize("algo", CalibrationAlgo)
def test_every_algorithm_keeps_the_accuracy(algo: CalibrationAlgo) -> None:
    model, data = trained()
    fast = compiled(model, data.images, DataLoaderCalibrator(data.calibration(), algo))
    with torch.no_grad():
        assert digits.points(fast(data.images), data.labels) >= digits.points(model(data.images), data.labels) - 0.5


def test_quantization_aware_training_rounds_every_layer_but_the_first_and_the_gates() -> None:
    model, data = trained()
    taught = digits.trained_on(model, data, epochs=1)
    rounded = [name for name, module in taught.named_modules() if isinstance(module, digits.Rounded)]
    assert rounded and not any("gate" in name for name in rounded)
    assert isinstance(taught[0][0], nn.Conv2d) and not any(isinstance(module, nn.BatchNorm2d) for module in taught.modules())
    with torch.no_grad():
        assert digits.points(taught(data.images), data.labels) >= 97


def test_pictures_are_moved_by_at_most_one_pixel() -> None:
    picture = torch.zeros(200, 1, 8, 8)
    picture[:, 0, 4, 4] = 1
    moved = digits._moved(picture)
    assert moved.shape == picture.shape and torch.equal(moved.sum((1, 2, 3)), torch.ones(200))
    places = {divmod(int(index), 8) for index in moved.flatten(1).argmax(1)}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}
