"""Products of few rows whose parts are added up by the kernel that norms them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backends.cuda.simulated import Simulated, check, graph_of, relative
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.layout import place
from torchsmith.backends.cuda.simulate import simulate
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics import gemm_norm

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


class PreNorm(nn.Module):
    """The sum goes on beside its norm, as in a vision transformer."""

    def __init__(self, k: int = 300, n: int = 36, bias: bool = True) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(k, n, bias=bias), nn.LayerNorm(n), nn.Linear(n, n)

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        y = residual + self.fc(x)
        return y + self.head(self.norm(y))


class PostNorm(nn.Module):
    """The norm alone goes on, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(256, 24), nn.RMSNorm(24)

    def forward(self, x: Tensor, residual: Tensor) -> Any:
        return torch.relu(self.norm(self.fc(x) + residual))


def parts_of(found: Simulated) -> int:
    """Of K, in the first product; a norm must follow it."""
    steps = [s for s in found.steps if isinstance(s, Launch) and s.kernel.function != "pointwise"]  # those cast the inputs
    assert [s.kernel.function for s in steps][:2] == ["gemm", "norm"]
    return int(steps[0].grid[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_beside_the_sum(dtype: torch.dtype) -> None:
    assert parts_of(check(PreNorm(), torch.randn(1, 9, 300), torch.randn(1, 9, 36), dtype=dtype)) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_alone(dtype: torch.dtype) -> None:
    assert parts_of(check(PostNorm(), torch.randn(2, 5, 256), torch.randn(2, 5, 24), dtype=dtype)) > 1


def test_without_bias() -> None:
    assert parts_of(check(PreNorm(bias=False), torch.randn(7, 300), torch.randn(7, 36))) > 1


def test_what_is_too_short_to_divide_runs_apart() -> None:
    assert parts_of(check(PreNorm(k=16), torch.randn(1, 9, 16), torch.randn(1, 9, 36))) == 1


@pytest.mark.parametrize("config", [
    gemm_norm.GemmNormConfig(16, 16, 32, 4, 2, 2, True, 1, 1), gemm_norm.GemmNormConfig(32, 16, 16, 4, 3, 6, False, 2, 4),
    gemm_norm.GemmNormConfig(16, 64, 64, 4, 2, 4, False, 1, 2),
])  # fmt: skip
def test_configurations(config: gemm_norm.GemmNormConfig) -> None:
    inputs = [torch.randn(2, 11, 300), torch.randn(2, 11, 36)]
    graph = fuse(graph_of(PreNorm(), inputs, torch.float32))
    views, packed = place(graph), Packed(graph.constants)
    (node,) = [n for n in graph.nodes if isinstance(n.op, Fused) and n.op.kind == "gemm_norm"]
    e = Emission(node, views, packed)
    gemm_norm.TEMPLATE.emit(e, config)
    given = {**packed.tensors, **dict(zip(graph.inputs, inputs, strict=True))}
    found = simulate(e.steps, dict(zip(graph.inputs, inputs, strict=True)), node.outputs, packed.tensors, e.views, {})
    assert relative(found, list(node.op.reference(*(given[v] for v in node.inputs)))) < 1e-6


def test_many_rows_are_left_to_products_of_their_own() -> None:
    graph = fuse(graph_of(PreNorm(n=64), [torch.randn(1 << 15, 300), torch.randn(1 << 15, 64)]))
    assert all(n.op.kind != "gemm_norm" for n in graph.nodes if isinstance(n.op, Fused))
