"""Attention: head dims and lengths of every kind, masks, causality, shared heads, and as the models write it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.backends.cuda.simulated import check, graph_of, run
from torchsmith import Input
from torchsmith.backends.cuda.kernels.attention import twin
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.attention import TEMPLATE, AttentionConfig

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class Plain(nn.Module):
    def __init__(self, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.causal, self.scale = causal, scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal, scale=self.scale)


class Block(nn.Module):
    """Projections in one product, heads as slices of it, and the projection that follows."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.out(y)


def qkv(batch: tuple[int, ...], length: int, keys: int, features: int, values: int | None = None) -> list[Tensor]:
    sizes = ((length, features), (keys, features), (keys, values or features))
    return [torch.randn(*batch, *size) for size in sizes]


def attends(kernels: list[str]) -> bool:
    return "attention" in kernels and set(kernels) <= {"attention", "[Cast]", "pointwise"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "keys", "features"), [(19, 37, 20), (5, 150, 64), (1, 3, 16), (70, 70, 33)])
def test_sizes(length: int, keys: int, features: int, causal: bool, dtype: torch.dtype) -> None:
    heads = (2, 3) if length < 64 else (1, 2)
    found = check(Plain(causal), *qkv(heads, length, keys, features), dtype=dtype)
    assert attends(found.kernels)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2, 3)])
def test_ranks_and_other_values(batch: tuple[int, ...]) -> None:
    assert attends(check(Plain(scale=0.3), *qkv(batch, 7, 11, 16, 24)).kernels)


MASKS = [((19, 37), torch.float16), ((2, 1, 19, 37), torch.bfloat16), ((2, 1, 1, 37), torch.float32), ((3, 19, 1), torch.float16)]


@pytest.mark.parametrize(("shape", "dtype"), MASKS)
def test_masks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = qkv((2, 3), 19, 37, 20)
    hidden = torch.rand(shape) < 0.7
    assert attends(check(Plain(), *given, hidden, dtype=dtype).kernels)
    assert attends(check(Plain(), *given, torch.randn(shape), dtype=dtype).kernels)


def test_a_row_in_which_nothing_takes_part_gives_zeros() -> None:
    mask = torch.ones(19, 37, dtype=torch.bool)
    mask[3] = False
    found = check(Plain(), *qkv((2, 3), 19, 37, 20), mask)
    assert not found.outputs[0][..., 3, :].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_in_and_out_cost_nothing(dtype: torch.dtype) -> None:
    found = check(Block(24, 3), torch.randn(2, 13, 24), dtype=dtype)
    assert [k for k in found.kernels if k not in ("[Cast]", "pointwise")] == ["gemm", "attention", "gemm"]


class AllTrue(nn.Module):
    """A mask that hides nothing, as transformers makes it for sequences without padding."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(q.shape[0], 1, q.shape[2], k.shape[2])
        zero = torch.zeros(q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, mask) + F.scaled_dot_product_attention(q, v, k, zero)


def test_a_mask_that_hides_nothing_is_dropped() -> None:
    found = check(AllTrue(), *qkv((2, 3), 11, 13, 16))
    masks = [dict(s.kernel.constants)["MASK"] for s in found.steps if isinstance(s, Launch) and s.kernel.function == "attention"]
    assert masks == ["", ""]


class WrittenOut(nn.Module):
    """Attention as models wrote it before there was an op. mask: "", "add" or "hide"."""

    def __init__(self, mask: str, wide: bool) -> None:
        super().__init__()
        self.mask, self.wide = mask, wide

    def forward(self, k: Tensor, q: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        scores = q @ k.transpose(-1, -2) / 4.0
        v = v * 2.0
        if mask is not None and self.mask == "add":
            scores = scores + mask
        elif mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) if self.wide else torch.softmax(scores, -1)
        return weights @ v


WRITTEN = [("", False, torch.float32), ("", True, torch.float16), ("add", True, torch.float16), ("add", False, torch.float32)]


@pytest.mark.parametrize(("mask", "wide", "dtype"), [*WRITTEN, ("hide", False, torch.float16), ("hide", True, torch.float32)])
def test_written_out(mask: str, wide: bool, dtype: torch.dtype) -> None:
    q, k, v = qkv((2, 3), 19, 37, 16)
    given = torch.rand(2, 1, 1, 37) < 0.5 if mask == "hide" else torch.randn(2, 1, 1, 37)
    found = check(WrittenOut(mask, wide), k, q, v, *([given] if mask else []), dtype=dtype)
    assert attends(found.kernels)


class Shared(nn.Module):
    """Grouped queries: two heads for each of the keys'."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return y.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1) * 2.0


def test_shared_heads_are_not_copied() -> None:
    q, (k, v) = torch.randn(2, 6, 11, 16), (torch.randn(2, 3, 13, 16) for _ in range(2))
    assert attends(check(Shared(), q, k, v).kernels)


@pytest.mark.parametrize(
    "config", [AttentionConfig(16, 16, 2, 2), AttentionConfig(64, 32, 4, 2), AttentionConfig(16, 128, 4, 2)], ids=str
)
def test_every_shape_of_block(config: AttentionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TEMPLATE), "configs", lambda self, e: [config])
    for keys, causal in ((48, False), (96, True)):
        assert attends(check(Plain(causal), *qkv((1, 2), 50, keys, 24)).kernels)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sizes", [(1, 3), (3, 37)])
def test_dynamic_sizes(sizes: tuple[int, int], masked: bool) -> None:
    n, length = Dim("n", max=8), Dim("l", min=2, max=64)
    given = [Input((n, 2, length, 16))] * 3 + [Input((n, 1, 1, length), dtype=torch.bool)] * masked
    hidden = torch.rand(sizes[0], 1, 1, sizes[1]) < 0.7
    found = run(graph_of(Plain(), given), [*qkv((sizes[0], 2), sizes[1], sizes[1], 16), *([hidden] if masked else [])])
    assert found.error <= 1.1 * found.eager_error + 2e-4 and attends(found.kernels)


@pytest.mark.parametrize("causal", [False, True])
def test_twin(causal: bool) -> None:
    q, k, v = qkv((2, 3), 11, 11, 16)
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
    torch.testing.assert_close(twin(q, k, v, None, 0.3, causal), wanted, rtol=1e-5, atol=1e-5)
