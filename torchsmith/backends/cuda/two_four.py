"""2:4 weights as engines hold them: the two of each four that are kept, and where they were.

The libraries for sparse tensor cores have layouts of their own, which depend on their version and on the GPU. An engine has this
one instead, and lays its weights out again when it is loaded: it can be built without a GPU, and runs with another version.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

GROUP, KEPT = 4, 2
MULTIPLE = 8  # of the terms, so that places fill whole bytes


@runtime_checkable
class Prepares(Protocol):
    """An op with a constant that is laid out once, when an engine is loaded, for what runs on the GPU."""

    @property
    def prepares(self) -> int:
        """Which of the inputs it is."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the constant as it is in the engine, whose dtype is torch.uint8."""

    def prepared(self, stored: Tensor) -> Tensor:
        """The constant as `reference` takes it on the GPU: flat, contiguous, bytes. stored: as it is in the engine, on the GPU."""


def packed(weight: Tensor) -> Tensor:
    """weight: (N, K), 2:4 along K, of a dtype of one or two bytes, K a multiple of 8. Gives bytes (N, K * itemsize / 2 + K / 8).

    A row has the kept values of all its groups, then two bits a value: its place in its group, the first in the lowest bits.
    """
    rows, terms = weight.shape
    assert terms % MULTIPLE == 0, f"{terms} terms are no multiple of {MULTIPLE}"
    groups = weight.contiguous().view(rows, terms // GROUP, GROUP)
    # zeros stand for what a group has fewer of; sorting is stable, so that the first ones do
    places = (groups == 0).to(torch.uint8).argsort(dim=2, stable=True)[..., :KEPT].sort(dim=2).values
    values = groups.gather(2, places).view(rows, -1).view(torch.uint8)
    pairs = (places[..., 0] | places[..., 1] << 2).view(rows, -1, 2)
    return torch.cat([values, (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)], 1)


def packed_shape(rows: int, terms: int, itemsize: int) -> tuple[int, int]:
    """Of `packed` weights."""
    return rows, terms // GROUP * KEPT * itemsize + terms // MULTIPLE


def unpacked(stored: Tensor, dtype: torch.dtype, terms: int) -> Tensor:
    """The weights (N, terms) that `packed` was given. stored: bytes, on any device."""
    rows, kept = stored.shape[0], terms // GROUP * KEPT
    values = stored[:, : kept * dtype.itemsize].reshape(-1).view(dtype).view(rows, -1, KEPT)
    bits = stored[:, kept * dtype.itemsize :].to(torch.int64)
    pairs = torch.stack([bits & 15, bits >> 4], 2).view(rows, -1)
    places = torch.stack([pairs & 3, pairs >> 2], 2)
    dense = torch.zeros(rows, terms // GROUP, GROUP, dtype=dtype, device=stored.device)
    return dense.scatter_(2, places, values).view(rows, terms)
