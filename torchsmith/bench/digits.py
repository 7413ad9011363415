"""Small networks that learn digits in seconds: a convolutional one, a vision transformer, and both with fake quantization.

The digits are scikit-learn's: 1,797 that people wrote, 8 × 8 pixels.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao import quantization as ao

from torchsmith.errors import InvalidInput

BATCH = 64


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8), float32 from 0 to 1, and labels (N,): `seen` to train and calibrate with, the others to be judged by."""

    seen_images: Tensor
    seen_labels: Tensor
    images: Tensor
    labels: Tensor

    @staticmethod
    def split(images: Tensor, labels: Tensor) -> Digits:
        """Two thirds are seen."""
        bound = len(images) * 2 // 3
        return Digits(images[:bound], labels[:bound], images[bound:], labels[bound:])

    def calibration(self) -> list[Tensor]:
        return [self.seen_images[start : start + BATCH] for start in range(0, len(self.seen_images), BATCH)]


def scanned() -> Digits:
    """scikit-learn's, in an order that is the same each time. Raises InvalidInput where it is not installed."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InvalidInput("scikit-learn, which carries the digits, is not installed: pip install scikit-learn") from error
    digits = datasets.load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    return Digits.split(torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16, torch.tensor(digits.target)[order])


class Gated(nn.Module):
    """A depthwise block with squeeze-and-excite and a residual. (B, channels, H, W) to the same."""

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
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(
        layer(1, 16), Gated(16), nn.MaxPool2d(2), layer(16, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a residual. (B, tokens, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(self.norm1(x)).chunk(3, -1))
        x = x + self.output(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        given: Tensor = x + self.wide(self.norm2(x))
        return given


class Transformer(nn.Module):
    """A vision transformer on patches of 4 × 4, which overlap by half. (B, 1, 8, 8) to (B, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(1, width, 4, 2, 1), nn.Parameter(torch.randn(16, width) * 0.1)
        self.body = nn.Sequential(Block(width, 4), Block(width, 4), nn.LayerNorm(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        scores: Tensor = self.head(self.body(tokens).mean(1))
        return scores


# By name: what makes the model, epochs, and the highest learning rate.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "convolutional": (convolutional, 12, 1e-2),
    "transformer": (Transformer, 80, 4e-3),
}


def trained(name: str, digits: Digits) -> nn.Module:
    """The named model after training, in eval mode; the same each time on one machine."""
    kind, epochs, rate = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _fitted(kind(), digits, None, epochs, rate)


def trained_on(model: nn.Module, digits: Digits, epochs: int = 4, rate: float = 1e-4) -> nn.Module:
    """A copy of a trained model after quantization-aware training: every layer but the first and the gates rounds its weight
    and its input to 8 bits, as engines will. It learns the float model's answers. In eval mode, with its ranges fixed.
    """
    module = _with_fake_quantization(copy.deepcopy(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return _fitted(module, digits, model, epochs, rate).apply(ao.disable_observer)


def _fitted(model: nn.Module, digits: Digits, teacher: nn.Module | None, epochs: int, rate: float) -> nn.Module:
    model.train()
    count = len(digits.seen_images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * count)
    for _ in range(epochs):
        order = torch.randperm(len(digits.seen_images))
        for part in order[: count * BATCH].reshape(count, BATCH):
            optimizer.zero_grad()
            images = _moved(digits.seen_images[part])
            loss = nn.functional.cross_entropy(
                model(images), digits.seen_labels[part] if teacher is None else _answers(teacher, images)
            )
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return model.eval()


def _answers(teacher: nn.Module, images: Tensor) -> Tensor:
    """Probabilities, (N, 10)."""
    with torch.no_grad():
        scores: Tensor = teacher(images)
    return scores.softmax(-1)


def _moved(images: Tensor) -> Tensor:
    """The images, each moved by up to one pixel in each direction."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    rows, columns = (torch.randint(3, (len(images), 1, 1)) for _ in range(2))
    down, right = rows + torch.arange(8)[None, :, None], columns + torch.arange(8)[None, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, down, right][:, None]


class Rounded(nn.Module):
    """A layer whose input and weight are rounded to 8 bits, with gradients that pass through."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        fake: Any = ao.FakeQuantize
        self.before = fake(ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)
        per_channel = fake(
            ao.MovingAveragePerChannelMinMaxObserver,
            quant_min=-127,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )
        nn.utils.parametrize.register_parametrization(layer, "weight", per_channel)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = self.layer(self.before(x))
        return given


def _with_fake_quantization(model: nn.Module) -> nn.Module:
    """Batch norms become part of the convolutions before them, and layers `Rounded` ones."""
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential):
            _fold_norms(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and getattr(module, "in_channels", 0) != 1:
            setattr(model, name, Rounded(module))
        elif name != "gate":
            _with_fake_quantization(module)
    return model


def _fold_norms(layers: nn.Sequential) -> None:
    for index, (first, second) in enumerate(itertools.pairwise(layers)):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            layers[index] = nn.utils.fuse_conv_bn_eval(first.eval(), second.eval())
            layers[index + 1] = nn.Identity()


def points(scores: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent. scores: (N, classes). labels: (N,)."""
    return float((scores.argmax(1) == labels).double().mean()) * 100
