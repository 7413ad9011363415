"""Small networks trained on digits, and what int8 costs them on the CPU."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import torchsmith
from torchsmith.ptq import CalibrationAlgo, DataLoaderCalibrator

# Three by five, as on a pocket calculator.
GLYPHS = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001010010010", "111101111101111", "111101111001111",
)  # fmt: skip


def drawn(count: int = 1800) -> tuple[Tensor, Tensor]:
    """Digits at random places in 8 × 8 pixels, of random strength, under noise; and which they are."""
    generator = torch.Generator().manual_seed(0)
    glyphs = torch.tensor([[float(bit) for bit in glyph] for glyph in GLYPHS]).reshape(10, 5, 3)
    labels = torch.arange(count) % 10
    images = torch.randn(count, 1, 8, 8, generator=generator) * 0.1
    for image, label in zip(images, labels, strict=True):
        top, left = (int(torch.randint(1, room, (), generator=generator)) for room in (3, 4))
        image[0, top : top + 5, left : left + 3] += glyphs[label] * (0.8 + 0.4 * torch.rand((), generator=generator))
    order = torch.randperm(count, generator=generator)
    return images.clamp(0, 1.5)[order], labels[order]


def scanned() -> tuple[Tensor, Tensor]:
    """scikit-learn's: 1,797 digits that people wrote, 8 × 8 pixels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, which carries the digits, is not installed")
    digits = datasets.load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16, torch.tensor(digits.target)[order]


DATA = {"drawn": drawn, "scanned": scanned}


class Gated(nn.Module):
    """A depthwise block with squeeze-and-excite and a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.SiLU()
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(x)
        given: Tensor = x + self.project(y * torch.sigmoid(self.gate(y)))
        return given


def convolutional() -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    body = [*layer(1, 16), Gated(16), nn.MaxPool2d(2), *layer(16, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(128, 10))


class Transformer(nn.Module):
    """A vision transformer on patches of 2 × 2."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(1, width, 2, 2), nn.Parameter(torch.randn(16, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        scores: Tensor = self.head(self.body(tokens).mean(1))
        return scores


MODELS = {"convolutional": (convolutional, 8, 1e-2), "transformer": (Transformer, 20, 4e-3)}


@functools.cache
def trained(data: str, name: str) -> tuple[nn.Module, TensorDataset, Tensor, Tensor]:
    """A model in eval mode, what it was trained with, and images and labels that it has not seen."""
    torch.manual_seed(0)
    images, labels = DATA[data]()
    kind, epochs, rate = MODELS[name]
    model, split = kind(), len(images) * 2 // 3
    seen = TensorDataset(images[:split], labels[:split])
    batches = DataLoader(seen, 64, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(batches))
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            schedule.step()
    return model.eval(), seen, images[split:], labels[split:]


def points(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent."""
    return float((scores.argmax(1) == labels).double().mean()) * 100


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", MODELS)
def test_int8_loses_at_most_half_a_point(data: str, name: str) -> None:
    model, seen, images, labels = trained(data, name)
    sizes = torchsmith.Input(min_shape=(2, 1, 8, 8), opt_shape=(64, 1, 8, 8), max_shape=(1024, 1, 8, 8))
    fast = torchsmith.compile(
        model, inputs=[sizes], enabled_precisions={torch.float32, torch.int8}, calibrator=DataLoader(seen, 64), backend="openvino"
    )
    with torch.no_grad():
        wanted, given = model(images), fast(images)
    assert points(wanted, labels) >= 97
    assert points(given, labels) >= points(wanted, labels) - 0.5
    assert not torch.equal(given, wanted)
    assert fast.report["options"]["calibrator"] == "DataLoader"


@pytest.mark.parametrize("algo", CalibrationAlgo)
def test_every_algorithm_keeps_the_accuracy(algo: CalibrationAlgo) -> None:
    model, seen, images, labels = trained("drawn", "convolutional")
    fast = torchsmith.compile(
        model,
        inputs=[images],
        enabled_precisions={torch.float32, torch.int8},
        calibrator=DataLoaderCalibrator(DataLoader(seen, 64), algo),
        backend="openvino",
    )
    with torch.no_grad():
        assert points(fast(images), labels) >= points(model(images), labels) - 0.5
