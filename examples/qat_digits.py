"""Quantization-aware training on handwritten digits: a small network is trained, fine-tuned with fake quantization, and compiled.

Run it with `python examples/qat_digits.py`. It takes half a minute on two cores; scikit-learn's wheel has the digits.
"""

from __future__ import annotations

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import torchsmith
from torchsmith.backends.openvino.run import OpenVinoRunner
from torchsmith.runtime.compiled import CompiledModule

SEEN = 1200  # of the 1,797 digits; the others are what accuracies are measured on
BATCH = 64

console = Console()


class FakeQuantize(nn.Module):
    """Rounds to what 256 numbers can say, with gradients as if it did not. In training its range follows the inputs."""

    greatest: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("greatest", torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.greatest.lerp_(x.detach().abs().max(), 0.05 if self.greatest > 0 else 1.0)
        return torch.fake_quantize_per_tensor_affine(x, self.greatest / 127, self.zero_point, -128, 127)


class Quantized(nn.Module):
    """A convolution or linear layer that sees its input and its weight rounded, the weight with a scale for each output channel."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer, self.input = layer, FakeQuantize()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        scale = weight.detach().flatten(1).abs().amax(1) / 127
        zero_point = torch.zeros_like(scale, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -127, 127)
        given: Tensor = torch.func.functional_call(self.layer, {"weight": rounded}, self.input(x))
        return given


def network() -> nn.Sequential:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    body = [*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(128, 10))


def quantization_aware(model: nn.Sequential) -> nn.Sequential:
    """The trained model with batch norms in the convolutions before them, and its layers `Quantized`, but for that on pixels."""
    layers: list[nn.Module] = []
    for module in model:
        if isinstance(module, nn.BatchNorm2d) and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = nn.utils.fuse_conv_bn_eval(layers[-1], module)
        else:
            layers.append(module)
    first, *rest = layers
    return nn.Sequential(first, *(Quantized(m) if isinstance(m, (nn.Conv2d, nn.Linear)) else m for m in rest))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * -(-len(images) // BATCH))
    for _ in range(epochs):
        for part in torch.split(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(images[part]), labels[part]))
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers, in percent."""
    with torch.no_grad():
        return 100 * float((model(images).argmax(1) == labels).double().mean())


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) from 0 to 1 and labels (1797,), in an order that is the same each time."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16, torch.tensor(labels)[order]


def main() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    seen, rest = (images[:SEEN], labels[:SEEN]), (images[SEEN:], labels[SEEN:])

    model = network()
    train(model, *seen, epochs=12, rate=1e-2)
    before = accuracy(model, *rest)

    aware = quantization_aware(model)
    train(aware, *seen, epochs=4, rate=1e-3)

    example = torchsmith.Input(min_shape=(1, 1, 8, 8), opt_shape=(64, 1, 8, 8), max_shape=(1024, 1, 8, 8))
    fast = torchsmith.compile(aware, inputs=[example], enabled_precisions={torch.float32, torch.int8}, device="cpu")

    table = Table("network", "right answers", box=box.SIMPLE_HEAD, title="digits that were not trained on", title_justify="left")
    table.add_row("float32", f"{before:.2f} %")
    table.add_row("with fake quantization, trained on", f"{accuracy(aware, *rest):.2f} %")
    table.add_row("compiled to int8", f"{accuracy(fast, *rest):.2f} %")
    console.print(table)
    console.print(
        f"layers as executed: {', '.join(f'{kind} in {precision}' for kind, precision in executed(fast))}", soft_wrap=True
    )


def executed(fast: nn.Module) -> list[tuple[str, str]]:
    """Of every layer in the engines what it is, and the precision that it runs in."""
    assert isinstance(fast, CompiledModule)
    runners = [engine.runner for engine in fast.engines]
    return [entry for runner in runners if isinstance(runner, OpenVinoRunner) for entry in runner.executed()]


if __name__ == "__main__":
    main()
