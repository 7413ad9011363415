"""Rows of a table, and elements picked by index."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.backends.cuda.simulated import check


class Embeddings(nn.Module):
    """As BERT's: words, positions, types."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.types = nn.Embedding(50, 24), nn.Embedding(16, 24), nn.Embedding(2, 24)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        found: Tensor = self.words(ids) + self.types(torch.zeros_like(ids)) + self.positions(places)
        return found


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_embeddings(dtype: torch.dtype) -> None:
    found = check(Embeddings(), torch.randint(0, 50, (3, 7)).to(dtype))
    assert set(found.kernels) == {"pointwise"}


class Pick(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, rows: Tensor, elements: Tensor) -> Tensor:
        return x.index_select(self.dim, rows) + x.gather(self.dim, elements).sum(self.dim, keepdim=True)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_picks(dim: int) -> None:
    x = torch.randn(4, 5, 6)
    rows = torch.randint(0, x.shape[dim], (3,))
    elements = torch.randint(0, x.shape[dim], x.shape)
    check(Pick(dim), x, rows, elements)
