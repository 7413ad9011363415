"""Concatenation: read by what follows, copied, or written in place by what gives the parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import check
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics import concat, pointwise
from torchsmith.backends.cuda.tactics.pointwise import PointwiseConfig


class Tokens(nn.Module):
    """As a vision transformer's: a class token before the patches, and position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 26, 24))
        self.patches = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.token.expand(x.shape[0], -1, -1), self.patches(x)), 1) + self.positions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tokens(dtype: torch.dtype) -> None:
    found = check(Tokens(), torch.randn(2, 25, 8), dtype=dtype)
    assert found.kernels[-2:] == ["gemm", "pointwise"]  # before them the input's cast


class Parts(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.cat((x, y, z), self.dim)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_inputs_are_copied_in_one_kernel(dim: int) -> None:
    shapes = [[3, 5, 8] for _ in range(3)]
    shapes[1][dim] = 1
    found = check(Parts(dim), *(torch.randn(s) for s in shapes))
    assert found.kernels.count("pointwise") == len(found.kernels)


class Branches(nn.Module):
    """Convolutions side by side, joined, and a part that others read too."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, channels[0], 1)
        self.branches = nn.ModuleList(nn.Conv2d(channels[0], c, 1) for c in channels[1:])
        self.last = nn.Conv2d(sum(channels), 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y: Tensor = self.last(torch.cat([x, *(b(x) for b in self.branches)], 1))
        return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_parts_are_written_in_place(dtype: torch.dtype) -> None:
    found = check(Branches(16, 8, 24), torch.randn(2, 8, 5, 7), dtype=dtype)
    assert found.kernels.count("gemm") == 4 and len([k for k in found.kernels if k != "gemm"]) <= 2, found.kernels


def test_parts_that_do_not_line_up_are_copied() -> None:
    found = check(Branches(6, 5), torch.randn(2, 8, 5, 7))
    assert found.kernels.count("pointwise") == 2 + (found.kernels[-1] == "pointwise"), found.kernels


class Dense(nn.Module):
    """As DenseNet's blocks: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(40, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(16 + 8 * i, 8, 1) for i in range(3))
        for norm in self.norms:
            for tensor in (*norm.parameters(), *(b for b in norm.buffers() if b.dim())):
                nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            found.append(layer(norm(torch.cat(found, 1)).relu()))
        y: Tensor = self.last(torch.cat(found, 1))
        return y


def test_a_dense_block_is_one_buffer() -> None:
    found = check(Dense(), torch.randn(2, 8, 5, 7))
    steps = [s for s in found.steps if isinstance(s, Launch)]
    # the norms and activations, and the casts of what is given and what is wanted
    assert sum(s.kernel.function in ("pointwise", "tiled") for s in steps) <= 5 and len(steps) == len(found.steps), found.kernels


class Normed(nn.Module):
    """A vision transformer's tokens up to its first norm."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = Tokens(), nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tokens(x)
        z: Tensor = self.norm(y) + y
        return z


def test_tokens_are_joined_as_the_norm_loads() -> None:
    for dtype in (torch.float16, torch.float32):
        found = check(Normed(), torch.randn(2, 25, 8), dtype=dtype)
        assert "norm" in found.kernels and "pointwise" not in found.kernels[1:-1], found.kernels


class Nested(nn.Module):
    """One concatenation in another, and one part of it given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(8, c, 1) for c in (16, 8, 8))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.cat([self.first(x), self.second(x)], 1)
        outer = torch.cat([self.third(x), y, inner], 1)
        return outer.mean((2, 3)), outer * 2.0


def test_a_part_that_is_given_is_copied() -> None:
    check(Nested(), torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7))


def test_many_parts() -> None:
    x = torch.randn(2, 20, 4)
    check(Apply(lambda x: torch.cat([x[:, i : i + 2] for i in range(0, 20, 2)][::-1], 1)), x)


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("config", [PointwiseConfig(0, 64, 1), PointwiseConfig(16, 32, 4), PointwiseConfig(64, 8, 2)])
def test_configurations(config: PointwiseConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of copies that change the layout, in tiles or not."""
    monkeypatch.setattr(concat, "configs_of", lambda e, loop, itemsize: [config])
    monkeypatch.setattr(pointwise, "configs_of", lambda e, loop, itemsize: [config if loop.rows or not config.block_r else FLAT])
    check(Nested(), torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7))


FLAT = PointwiseConfig(0, 256, 4)


class Inception(nn.Module):
    """Every kind of kernel that writes a part in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 1)
        self.square, self.deep = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pool, self.last = nn.AvgPool2d(3, 1, 1), nn.Conv2d(88, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        up = F.interpolate(x[:, :, ::2, ::2], size=x.shape[2:])
        y: Tensor = self.last(torch.cat([self.square(x).relu(), self.deep(x), self.pool(x), F.silu(x), up], 1))
        return y


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_kind_of_part(dtype: torch.dtype) -> None:
    found = check(Inception(), torch.randn(2, 8, 6, 4), dtype=dtype)
    wholes = {s.writes[0].type.shape for s in found.steps if isinstance(s, Launch)}
    assert (2, 88, 6, 4) not in wholes and "[" not in "".join(found.kernels), found.kernels
