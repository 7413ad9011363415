"""The pattern itself: two of four."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from torchsmith.errors import InvalidInput

GROUP, KEPT = 4, 2


def two_four_mask(weight: Tensor, dim: int = 1) -> Tensor:
    """Where the two weights of largest magnitude are, of each four neighbours along `dim`; of equal ones the earlier.

    weight: any shape, floating, on any device; dim 1 is the reduction dimension of linear layers (N, K) and of
    convolutions (K, C, kh, kw). Gives booleans of the same shape: exactly two of each four are True.
    Raises InvalidInput where the dimension is not a multiple of four, or weights are NaN.
    """
    size = weight.shape[dim]
    if size % GROUP:
        raise InvalidInput(f"dimension {dim} of weights {tuple(weight.shape)} has size {size}; 2:4 takes multiples of {GROUP}")
    if bool(weight.isnan().any()):
        raise InvalidInput(f"weights of shape {tuple(weight.shape)} have NaN among them, and NaN has no magnitude to compare")
    dim %= weight.dim()
    members = _members(weight.detach().abs(), dim)
    larger = [torch.zeros_like(m, dtype=torch.uint8) for m in members]  # for each member, how many others go before it
    for i, j in combinations(range(GROUP), 2):
        earlier_wins = members[i] >= members[j]
        larger[j] += earlier_wins
        larger[i] += ~earlier_wins
    return torch.stack([count < KEPT for count in larger], dim + 1).flatten(dim, dim + 1)


def is_two_four(weight: Tensor, dim: int = 1) -> bool:
    """Whether of each four neighbours along `dim` at least two are zero. weight: any shape, dtype and device.

    A dimension that is no multiple of four is not 2:4. On a GPU this waits for the device.
    """
    if weight.shape[dim] % GROUP:
        return False
    dim %= weight.dim()
    if weight.dim() > 1 and weight.numel():
        # dense weights, which most are, show it in their first row
        across = 1 if dim == 0 else 0
        if not _holds(weight.narrow(across, 0, 1), dim):
            return False
    return _holds(weight, dim)


def _holds(weight: Tensor, dim: int) -> bool:
    a, b, c, d = _members(weight.detach() != 0, dim)
    three_of_four = (a & b & (c | d)) | (c & d & (a | b))
    return not bool(three_of_four.any())


def _members(weight: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The first of each four, the second, the third and the fourth."""
    shape = weight.shape
    return weight.reshape(*shape[:dim], shape[dim] // GROUP, GROUP, *shape[dim + 1 :]).unbind(dim + 1)
