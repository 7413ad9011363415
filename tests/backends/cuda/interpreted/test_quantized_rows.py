"""Transformers of int8: norms that write int8 beside what is added later, one product for query, key and value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.interpreted.test_quantized import Layer, signed
from tests.backends.cuda.simulated import check, graph_of
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.steps import Launch
from torchsmith.backends.cuda.tactics.norm import NormTemplate
from torchsmith.backends.cuda.tactics.rows import RowConfig


class Encoder(nn.Module):
    """A layer as BERT has it: norms are after the sums, so that what they give is taken twice."""

    def __init__(self, width: int, rows: int | None = None) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.leave = (Layer(nn.Linear(width, width, bias=i != 1)) for i in range(4))
        self.up, self.down = Layer(nn.Linear(width, 2 * width)), Layer(nn.Linear(2 * width, width))
        self.shares = nn.Parameter(torch.rand(width) + 0.5)  # moved from a layer's inputs to its weights, as calibration does
        self.table = None if rows is None else nn.Embedding(rows, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x if self.table is None else self.table(x))
        q = signed(x, 0.03)
        heads = [layer(q).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = self.second(self.leave(signed(y, 0.02)) + x)
        y = signed(F.gelu(self.up(signed(x * self.shares, 0.03))), 0.02)
        z: Tensor = self.third(self.down(y) + x)
        return z


def kinds(module: nn.Module, x: Tensor) -> list[str]:
    return [n.op.kind for n in fuse(graph_of(module, [x])).nodes if isinstance(n.op, Fused)]


def test_nothing_runs_between_the_layers() -> None:
    found = kinds(Encoder(64), torch.zeros(4096, 8, 64))
    assert found == ["norm", "gemm_int8", "attention", "gemm_int8", "norm", "gemm_int8", "gemm_int8", "norm"]


def test_rows_of_a_table_are_taken_as_the_norm_loads() -> None:
    assert kinds(Encoder(64, 10), torch.zeros(4096, 8, dtype=torch.int64))[0] == "norm"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_layer(dtype: torch.dtype) -> None:
    found = check(Encoder(32), torch.randn(2, 5, 32), dtype=dtype, limit=1.5)
    written = [[v.type.dtype for v in s.writes] for s in found.steps if isinstance(s, Launch)]
    assert found.kernels[:2] == ["norm", "gemm"] and len(written[0]) == 2
    assert sum(torch.int8 in dtypes for dtypes in written) == 4, "both norms, attention, gelu"


@pytest.mark.parametrize("config", [RowConfig(2, 64, 1), RowConfig(1, 16, 1, loop=True)], ids=str)
def test_configurations(config: RowConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NormTemplate, "configs", lambda self, e: [config])
    found = check(Encoder(36), torch.randn(3, 3, 36), limit=1.5)
    assert found.kernels[0] == ("norm_long" if config.loop else "norm")


def test_few_rows_are_normed_as_the_parts_of_their_product_are_added_up() -> None:
    assert "gemm_norm" in kinds(Encoder(256), torch.zeros(1, 8, 256))
    found = check(Encoder(256), torch.randn(1, 8, 256), limit=1.5)
    assert found.kernels == ["norm", "gemm", "attention", "gemm", "norm", "gemm", "gemm", "norm"]


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_threads_take_one_after_the_other(rows: int) -> None:
    found = check(nn.Sequential(Rounded(), Layer(nn.Linear(300, 45)), nn.ReLU(), Rounded()), torch.randn(rows, 300), limit=1.5)
    assert found.kernels[1] == "gemv"


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return signed(x, 0.03)
