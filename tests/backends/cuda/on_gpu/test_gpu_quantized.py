"""INT8 on a GPU: models with quantize/dequantize pairs, their nodes in many tactics, and whole compiled ones.

`tools/sanitize.py` runs this file under compute-sanitizer.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from tests.backends.cuda.interpreted.test_quantized import graph_of as graph_of_net
from tests.backends.cuda.interpreted.test_quantized_depthwise import convolved
from tests.backends.cuda.on_gpu.nets import HALF, Bert, Cnn, Vit, error, images, made, needs_gpu
from tests.backends.cuda.on_gpu.test_gpu_kernels import (
    check_any_choice,
    model_of,
    no_recording_without_a_cache,  # noqa: F401 - a fixture
)
from tests.backends.cuda.simulated import graph_of
from torchsmith import backends
from torchsmith.backends.cuda.backend import BACKEND
from torchsmith.config import BuildConfig
from torchsmith.ir.builder import Builder
from torchsmith.ir.graph import Graph
from torchsmith.ir.interpret import interpret
from torchsmith.ir.types import type_of
from torchsmith.ops.pad import Pad
from torchsmith.ops.pool import MaxPool
from torchsmith.ptq import DataLoaderCalibrator
from torchsmith.runtime.compiled import CompiledModule

pytestmark = needs_gpu
SEEDS = 4


class Rounded(nn.Module):
    """A layer whose input and weight are rounded to int8: the input for the whole tensor, the weight for each output channel."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, largest: float) -> None:
        super().__init__()
        weight = layer.weight.detach()
        scales = (weight.flatten(1).abs().amax(1) / 127).clamp_min(1e-8)
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        self.layer, self.scale = layer, largest / 127
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, 0, -128, 127)
        weight = torch.fake_quantize_per_channel_affine(self.layer.weight, self.scales, self.zeros, 0, -127, 127)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return F.conv2d(x, weight, self.layer.bias, self.layer.stride, self.layer.padding, self.layer.dilation, self.layer.groups)


def rounded(model: nn.Module, given: tuple[Tensor, ...]) -> nn.Module:
    """The model with every linear layer and convolution rounded, by the largest inputs that they get of these."""
    largest: dict[str, float] = {}
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}

    def watch(name: str) -> object:
        def seen(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 1e-6), float(inputs[0].abs().max()))

        return seen

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]  # type: ignore[arg-type]
    with torch.no_grad():
        model(*given)
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Rounded(layer, largest[name]))
    return model


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("kind", [Cnn, Vit, Bert], ids=["cnn", "vit", "bert"])
def test_any_choice_of_tactics_is_right(kind: type[nn.Module], seed: int) -> None:
    """Rounding to integers turns a last bit into a step now and then, in PyTorch's half precision as in ours."""
    model, given = model_of(kind)
    check_any_choice(graph_of(rounded(model, given), given, HALF), given, seed, 1.5, 5e-3, ["Integer"])


@pytest.mark.parametrize("channels", [64, 6])
def test_the_greatest_of_negative_integers(channels: int) -> None:
    """What is loaded beyond the picture's edge is not among them: -1 would be the greatest there."""
    x = torch.randint(-128, -2, (2, channels, 9, 10), dtype=torch.int8)
    with Builder() as builder:
        graph = builder.finish([MaxPool((3, 3), (2, 2), (1, 1), (1, 1), False)(builder.input(type_of(x)))])
    assert torch.equal(on_gpu(graph, x).float(), F.max_pool2d(x.float(), 3, 2, 1))


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.int8, -128), (torch.int8, 9), (torch.uint8, 200)])
@pytest.mark.parametrize(("channels", "stride", "size"), [(64, 1, 9), (32, 2, 9), (6, 1, 9), (64, 1, 56)])
def test_depthwise_with_a_zero_point(channels: int, stride: int, size: int, dtype: torch.dtype, zero_point: int) -> None:
    """What is loaded beyond the picture's edge is the number that stands for 0."""
    x = torch.randn(2, channels, size, size + 1)
    graph = graph_of_net(convolved(channels, 3, stride, zero_point, dtype), x)
    (wanted,) = interpret(graph, [x])
    assert torch.equal(on_gpu(graph, x), wanted)


@pytest.mark.parametrize(("dtype", "value"), [(torch.int8, -3), (torch.uint8, 200), (torch.int16, -300), (torch.int32, -5)])
def test_padding_of_integers(dtype: torch.dtype, value: int) -> None:
    x = torch.arange(96, dtype=dtype).reshape(3, 32)
    with Builder() as builder:
        graph = builder.finish([Pad((0, 8), (0, 24), "constant", value)(builder.input(type_of(x)))])
    assert torch.equal(on_gpu(graph, x), F.pad(x, (8, 24), value=value))


def on_gpu(graph: Graph, x: Tensor) -> Tensor:
    target = backends.target_of("cuda")
    engine = BACKEND.load(BACKEND.build(graph, target, BuildConfig(tune=False)), target)
    return engine([x.cuda()])[0].cpu()


@pytest.mark.parametrize("tune", [False, True], ids=["guessed", "tuned"])
@pytest.mark.parametrize("kind", [Cnn, Vit], ids=["cnn", "vit"])
def test_calibrated(kind: type[nn.Module], tune: bool) -> None:
    model = made(kind)
    x, data = images(4), [images(8, seed=seed) for seed in (2, 3)]
    with torch.no_grad():
        wanted = copy.deepcopy(model).double()(x.double())
    fast = torchsmith.compile(
        model, inputs=[x], enabled_precisions={torch.half, torch.int8}, calibrator=DataLoaderCalibrator(data), tune=tune,
        require_eight_bits=True,
    )  # fmt: skip
    assert isinstance(fast, CompiledModule)
    tactics = [str(step.about.get("node", "")) for step in fast.engines[0].runner.plan.variants[0].steps]  # type: ignore[attr-defined]
    assert any("Integer" in tactic for tactic in tactics), tactics
    assert error(fast(x), wanted) < 0.1
    assert torch.equal(fast(x), fast(x))


def test_the_faster_of_int8_and_floats_is_kept() -> None:
    model, data = made(Cnn), [images(8, seed=seed) for seed in (2, 3)]
    options: dict[str, Any] = {"enabled_precisions": {torch.half, torch.int8}, "calibrator": DataLoaderCalibrator(data)}
    fast = torchsmith.compile(model, inputs=[images(4)], **options)
    found = torchsmith.explain(fast)
    assert found.contest is not None and found.contest["kept_eight_bits"] == any(not layer["reason"] for layer in found.layers)
    tactics = [str(step.about.get("node", "")) for step in fast.engines[0].runner.plan.variants[0].steps]
    assert any("Integer" in tactic for tactic in tactics) == found.contest["kept_eight_bits"], found.contest


class Grouped(nn.Module):
    """Convolutions in groups, with paddings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.four = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 128, 3, padding=1, groups=4)
        self.many, self.last = nn.Conv2d(128, 128, 3, 2, 1, groups=32), nn.Conv2d(128, 24, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.four(F.relu(self.stem(x))))
        result: Tensor = self.last(F.silu(self.many(x)))
        return result


@pytest.mark.parametrize("tune", [False, True], ids=["guessed", "tuned"])
@pytest.mark.parametrize("any_size", [False, True], ids=["one-size", "any-size"])
def test_convolutions_in_groups_of_pictures_of_any_size(any_size: bool, tune: bool) -> None:
    """Zero points stand beyond the pictures' edges, wherever these are; silu's least is below 0, so that they are not -128."""
    model = made(Grouped)
    x = torchsmith.Input(min_shape=(1, 3, 20, 20), opt_shape=(2, 3, 32, 32), max_shape=(4, 3, 48, 64)) if any_size else images(2)
    fast = torchsmith.compile(
        model, inputs=[x], enabled_precisions={torch.half, torch.int8}, calibrator=[images(8, seed=seed) for seed in (2, 3)],
        tune=tune, require_eight_bits=True,
    )  # fmt: skip
    layers = {layer["name"]: layer["reason"] for layer in torchsmith.explain(fast).layers}
    assert len(layers) == 4 and sum(not reason for reason in layers.values()) == 3, layers
    wide = copy.deepcopy(model).double()
    for shape in [(1, 3, 20, 21), (4, 3, 48, 64), (2, 3, 32, 32)] if any_size else [tuple(images(2).shape)]:
        given = torch.randn(shape, generator=torch.Generator().manual_seed(5)).cuda()
        with torch.no_grad():
            assert error(fast(given), wide(given.double())) < 0.05
