"""Attention kernels compile for every architecture, on tensor cores and with wide loads; where results lie; what is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backends.cuda.simulated import graph_of
from torchsmith.backends.cuda import tactics
from torchsmith.backends.cuda.cubins import Cubin, compile_kernel
from torchsmith.backends.cuda.emission import Emission, Packed
from torchsmith.backends.cuda.fuse import fuse
from torchsmith.backends.cuda.layout import is_view, place
from torchsmith.backends.cuda.steps import Call, Launch
from torchsmith.backends.cuda.tactics.attention import AttentionConfig
from torchsmith.errors import Unsupported

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="one process cannot interpret and compile")


class Block(nn.Module):
    """A vision transformer's: one projection, heads as slices of it, attention, a projection."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(heads * width, 3 * heads * width), nn.Linear(heads * width, 8)

    def forward(self, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def emission(batch: int, length: int, heads: int, width: int) -> Emission:
    graph = fuse(graph_of(Block(heads, width), [torch.randn(batch, length, heads * width)]))
    placed = place(graph)
    moved = [n for n in graph.nodes if type(n.op).__name__ in ("Permute", "Reshape", "Slice")]
    assert moved and all(is_view(n, placed) for n in moved)
    (node,) = [n for n in graph.nodes if tactics.kind_of(Emission(n, placed, Packed(graph.constants))) == "attention"]
    return Emission(node, placed, Packed(graph.constants))


@interpreted
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiles(arch: int) -> None:
    for config in (AttentionConfig(16, 64, 2, 3), AttentionConfig(128, 64, 8, 3)):
        e = emission(1, 197, 3, 64)
        tactics.template("attention").emit(e, config)
        (step,) = e.steps
        assert isinstance(step, Launch)
        assert isinstance(compile_kernel(step.kernel, arch), Cubin)


def test_small_batches_get_many_blocks_and_large_ones_large_tiles() -> None:
    small, large = (tactics.template("attention").configs(emission(batch, 197, 12, 64))[0] for batch in (1, 32))
    assert 12 * -(-197 // small.block_m) >= 48
    assert large.block_m >= 64


def test_library_runs_the_op_itself() -> None:
    e = emission(1, 17, 2, 16)
    library = tactics.template("attention_library")
    library.emit(e, library.configs(e)[0])
    (step,) = e.steps
    assert isinstance(step, Call) and type(step.op).__name__ == "Attention"


def test_wide_heads_are_refused() -> None:
    with pytest.raises(Unsupported, match="heads of 320"):
        tactics.template("attention").configs(emission(1, 17, 2, 320))
