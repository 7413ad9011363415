"""Scales and shifts per channel go into weights, and only where that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lower.programs import HOW, agrees, applied, exported, ops
from torchsmith.config import LowerConfig
from torchsmith.lower.editing import Lowering
from torchsmith.lower.fold_batch_norm import fold_batch_norm
from torchsmith.lower.fold_constants import fold_constants

IMAGE, SIGNAL, VOLUME, TOKENS = torch.randn(2, 4, 7, 5), torch.randn(2, 4, 9), torch.randn(1, 4, 3, 4, 5), torch.randn(2, 6, 4)


def norm(channels: int, dims: int = 2, **options: Any) -> nn.Module:
    """A batch norm with random statistics."""
    module = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels, **options)
    nn.init.normal_(module.running_mean)
    nn.init.uniform_(module.running_var, 0.2, 3.0)
    if module.affine:
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    return module


class Scale(nn.Module):
    def __init__(self, *shape: int, function: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> None:
        super().__init__()
        self.gamma, self.function = nn.Parameter(torch.randn(shape) + 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.gamma)


class Flattened(nn.Module):
    """levit's linear layer: its norm sees tokens as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6, bias=False), norm(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


def permuted(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class Then(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("module", "x", "left"),
    [
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm(6)), IMAGE, ["conv2d"], id="conv2d"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 3, padding="same"), norm(6)), IMAGE, ["conv2d"], id="same"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), norm(8)), IMAGE, ["conv2d"], id="grouped"),
        pytest.param(nn.Sequential(nn.Conv1d(4, 6, 3), norm(6, 1)), SIGNAL, ["conv1d"], id="conv1d"),
        pytest.param(nn.Sequential(nn.Conv3d(4, 6, 2), norm(6, 3)), VOLUME, ["conv3d"], id="conv3d"),
        pytest.param(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), norm(6)), IMAGE, ["conv_transpose2d"], id="transposed"),
        pytest.param(
            nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), norm(6)),
            IMAGE,
            ["conv_transpose2d"],
            id="transposed, grouped",
        ),
        pytest.param(nn.Sequential(nn.ConvTranspose1d(4, 6, 3), norm(6, 1)), SIGNAL, ["conv_transpose1d"], id="transposed 1d"),
        pytest.param(nn.Sequential(nn.Linear(4, 6), norm(6, 1)), TOKENS[0], ["linear"], id="linear"),
        pytest.param(Flattened(), TOKENS, ["linear", "flatten", "reshape_as"], id="levit"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 3), norm(6, affine=False)), IMAGE, ["conv2d"], id="no affine"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), Scale(6, 1, 1)), IMAGE, ["conv2d"], id="layer scale"),
        pytest.param(
            nn.Sequential(nn.Conv2d(4, 6, 1), Scale(1, 6, 1, 1), norm(6), Scale(6, 1, 1, function=torch.sub)),
            IMAGE,
            ["conv2d"],
            id="chain",
        ),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), Scale(6, 1, 1, function=torch.div)), IMAGE, ["conv2d"], id="div"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), Then(lambda x: 2 * x + 1 - 0.5)), IMAGE, ["conv2d"], id="numbers"),
        pytest.param(
            nn.Sequential(nn.Linear(4, 6), Scale(6), Scale(6, function=torch.add)), TOKENS, ["linear"], id="linear, scale and shift"
        ),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), Then(permuted), Scale(6)), IMAGE, ["conv2d", "permute"], id="permuted"),
        pytest.param(nn.Sequential(norm(4, 1), nn.Linear(4, 6)), TOKENS[0], ["linear"], id="before linear"),
        pytest.param(nn.Sequential(norm(4), nn.Conv2d(4, 6, 3, groups=2)), IMAGE, ["conv2d"], id="before conv"),
        pytest.param(
            nn.Sequential(Scale(4, 1, 1), nn.Conv2d(4, 6, 3, padding=1)), IMAGE, ["conv2d"], id="scale before padded conv"
        ),
        pytest.param(
            nn.Sequential(Scale(4, 1, 1), nn.ConvTranspose2d(4, 6, 3, groups=2)),
            IMAGE,
            ["conv_transpose2d"],
            id="scale before transposed",
        ),
        pytest.param(
            nn.Sequential(Scale(4, function=lambda x, g: torch.addcmul(g, g, x, value=2)), nn.Linear(4, 6)),
            TOKENS,
            ["linear"],
            id="addcmul",
        ),
    ],
)
def test_folds(module: nn.Module, x: Tensor, left: list[str]) -> None:
    module.eval()
    program = applied(fold_batch_norm, exported(module, x))
    assert ops(program) == left
    agrees(program, module, x, limit=2e-5)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 1), norm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Computed(nn.Module):
    """A weight that depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = norm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.conv2d(x, x.mean((0, 2, 3), keepdim=True).reshape(4, 1, 1, 1), groups=4))


@pytest.mark.parametrize(
    ("module", "x"),
    [
        pytest.param(Twice(), IMAGE, id="the convolution has another user"),
        pytest.param(Computed(), IMAGE, id="the weight is no constant"),
        pytest.param(nn.Sequential(nn.ReLU(), norm(4)), IMAGE, id="no layer before"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), norm(6)), IMAGE, id="a function between"),
        pytest.param(nn.Sequential(nn.Linear(5, 3), norm(4)), IMAGE, id="channels of another dimension"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), Scale(7, 5)), IMAGE, id="a scale per pixel"),
        pytest.param(nn.Sequential(nn.Conv2d(4, 6, 1), Scale(3, 1, 1, 1, 1)), IMAGE, id="a scale that adds a dimension"),
        pytest.param(nn.Sequential(norm(4), nn.Conv2d(4, 6, 3, padding=1)), IMAGE, id="before padding, which the shift would miss"),
        pytest.param(nn.Sequential(norm(4), nn.ConvTranspose2d(4, 6, 3)), IMAGE, id="before a transposed convolution"),
        pytest.param(
            nn.Sequential(Scale(4, function=lambda x, g: g - x), nn.Linear(4, 6)), TOKENS, id="a difference the other way round"
        ),
    ],
)
def test_does_not_fold(module: nn.Module, x: Tensor) -> None:
    module.eval()
    program = exported(module, x)
    assert ops(applied(fold_batch_norm, program)) == ops(program)


def test_a_norm_that_trains_stays() -> None:
    program = exported(
        lambda x: nn.functional.batch_norm(torch.conv2d(x, torch.ones(4, 4, 1, 1)), None, None, training=True), IMAGE
    )
    assert "batch_norm" in ops(applied(fold_batch_norm, applied(fold_constants, program)))


def test_core_aten_norms() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, 6, 1), Scale(6, 1, 1), norm(6)).eval()
    program = exported(module, IMAGE).run_decompositions()
    assert ops(program).count("_native_batch_norm_legit_no_training") == 2
    program = applied(fold_batch_norm, program)
    assert ops(program) == ["convolution", "relu", "convolution"]
    agrees(program, module, IMAGE, limit=2e-5)


def test_weights_that_would_overflow_stay() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, 1), Scale(6, 1, 1)).half().eval()
    with torch.no_grad():
        module[1].gamma.fill_(60000)
        module[0].weight.fill_(100)
    program = exported(module, IMAGE.half())
    assert ops(fold_batch_norm(program, HOW)) == ["conv2d", "mul"]


def test_low_precision_weights_are_rounded_once() -> None:
    module = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm(6)).to(torch.bfloat16).eval()
    program = applied(fold_batch_norm, exported(module, IMAGE.bfloat16()), limit=1e-2)
    assert ops(program) == ["conv2d"]
    assert all(t.dtype == torch.bfloat16 for name, t in program.constants.items() if name.startswith("c_"))


def test_dynamic_sizes() -> None:
    module, n = Flattened().eval(), torch.export.Dim("n", min=2, max=9)
    program = applied(fold_batch_norm, exported(module, TOKENS, dynamic=({0: n, 1: torch.export.Dim("tokens", min=2, max=9)},)))
    assert "batch_norm" not in ops(program)
    agrees(program, module, torch.randn(3, 5, 4), limit=2e-5)


def test_a_shared_weight_is_folded_for_each_of_its_uses() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(4, 4, 1), norm(4), norm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.conv(self.first(self.conv(x)).relu()))

    module = Shared().eval()
    program = applied(fold_batch_norm, exported(module, IMAGE))
    assert ops(program) == ["conv2d", "relu", "conv2d"]
    agrees(program, module, IMAGE, limit=2e-5)


def test_switched_off_or_kept() -> None:
    program = exported(nn.Sequential(nn.Conv2d(4, 6, 1), norm(6)).eval(), IMAGE)
    for how in (
        Lowering(LowerConfig(fold_batch_norm=False)),
        Lowering(HOW.config, frozenset(["aten.batch_norm"])),
        Lowering(HOW.config, frozenset(["aten.conv2d.default"])),
    ):
        assert "batch_norm" in ops(applied(fold_batch_norm, program, how))
