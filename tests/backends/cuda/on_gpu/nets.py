"""Small models with what large ones have, and what the tests here ask of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchsmith
from torchsmith.runtime.compiled import CompiledModule

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
ROUNDING = {FLOAT: 2e-6, HALF: 2e-4, BFLOAT: 2e-3}


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """Widen, depthwise, squeeze and excite, narrow, and the input on top where it fits."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.widen = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU(), SqueezeExcite(wide)
        )
        self.narrow = nn.Sequential(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = channels == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.residual else y


class Cnn(nn.Module):
    """x: (N, 3, H, W) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.blocks = nn.Sequential(Block(16, 24, 2), Block(24, 24, 1), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, mask)
        projected: Tensor = self.out(y.transpose(1, 2).reshape(n, length, width))
        return projected


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.first(x), mask)
        y: Tensor = x + self.mlp(self.second(x))
        return y


class Vit(nn.Module):
    """x: (N, 3, 32, 32) -> (N, 10)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.first, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.layers = nn.ModuleList([Layer(width, 2), Layer(width, 2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.first.expand(y.shape[0], -1, -1), y], 1) + self.places
        for layer in self.layers:
            y = layer(y)
        logits: Tensor = self.head(self.norm(y)[:, 0])
        return logits


class Bert(nn.Module):
    """ids, mask: int64 (N, T) -> (N, T, width)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(100, width), nn.Embedding(64, width)
        self.layers = nn.ModuleList([Layer(width, 2), Layer(width, 2)])
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device)))
        seen = mask[:, None, None, :].bool()
        for layer in self.layers:
            y = layer(y, seen)
        return y


def made(kind: type[nn.Module]) -> nn.Module:
    """The model on the GPU, in float32, with statistics as trained ones have."""
    torch.manual_seed(0)
    model = kind().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.cuda()


def images(batch: int = 2, size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)).cuda()


def words(batch: int = 2, length: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 100, (batch, length), generator=torch.Generator().manual_seed(seed)).cuda()
    mask = torch.ones_like(ids)
    mask[-1, length // 2 + 1 :] = 0
    return ids, mask


def fast(model: nn.Module, inputs: Sequence[Any], dtype: torch.dtype = HALF, **options: Any) -> CompiledModule:
    """Compiled whole, with best guesses."""
    compiled = torchsmith.compile(
        model, inputs=list(inputs), enabled_precisions={dtype}, tune=False, require_full_compilation=True, **options
    )
    assert isinstance(compiled, CompiledModule)
    return compiled


def double(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = copy.deepcopy(model).double()(*(t.double() if t.is_floating_point() else t for t in inputs))
    return y


def reduced(model: nn.Module, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """What PyTorch gives in that precision."""
    with torch.no_grad():
        y: Tensor = copy.deepcopy(model).to(dtype)(*(t.to(dtype) if t.is_floating_point() else t for t in inputs))
    return y


def error(given: Tensor, wanted: Tensor) -> float:
    assert given.shape == wanted.shape and bool(torch.isfinite(given.double()).all())
    return float((given.double() - wanted.double()).norm() / wanted.double().norm())


def right(given: Tensor, model: nn.Module, *inputs: Tensor, dtype: torch.dtype = HALF) -> None:
    """Assert that the error is at most PyTorch's own in that precision, but for a tenth and the last rounding."""
    wanted = double(model, *inputs)
    mine, eager = error(given, wanted), error(reduced(model, dtype, *inputs), wanted)
    assert mine <= 1.1 * eager + ROUNDING[dtype], f"{mine:.2e}, and PyTorch's own error is {eager:.2e}"
