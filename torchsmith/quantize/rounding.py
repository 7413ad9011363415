"""Whole numbers for weights, chosen so that what a layer computes changes least.

Each column of a weight is rounded in turn, and the columns not yet rounded take over its error, as far as the inputs that they
multiply go together with its own. What is known of the inputs is their second moments. Source: E. Frantar et al., "GPTQ: accurate
post-training quantization for generative pre-trained transformers", 2022, and B. Hassibi, D. Stork, "Optimal brain surgeon", 1992.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 0.01  # of the mean second moment, added to each: inputs that were not seen to vary may
# Of the moments of two inputs, this share of K / (K + rows) is not believed: few rows make unrelated ones look related.
_DOUBT = 0.3
_BLOCK = 64  # columns whose errors are taken over by those behind them at once


def nearest(weight: Tensor, steps: Tensor, greatest: int) -> Tensor:
    """weight / steps, rounded, as fake-quantize ops do it. weight: (..., rows, K), steps: (..., rows)."""
    return torch.round(weight * (1.0 / steps)[..., None]).clamp(-greatest, greatest)


def rounded(weight: Tensor, steps: Tensor, greatest: int, moments: Tensor, seen: int) -> Tensor:
    """Whole numbers for a weight, times whose steps it computes nearly the same.

    weight: (..., rows, K), float32. steps: (..., rows). moments: (..., K, K), the mean of x xᵀ over the `seen` inputs x, float32.
    Gives whole numbers up to `greatest` as float32, (..., rows, K). A row for which rounding to the nearest is no worse gets that;
    so does one whose moments are infinite. Zeros stay zeros, so that pruned weights stay pruned.
    """
    count = weight.shape[-1]
    moments = _damped(moments.double(), _DOUBT * count / (count + seen))
    order = moments.diagonal(dim1=-2, dim2=-1).argsort(-1, descending=True)  # the largest inputs first, while others can follow
    factor = _factor(_permuted(moments, order)).to(weight.dtype)
    columns = order[..., None, :].expand(weight.shape)
    left = weight.gather(-1, columns)
    zero = left == 0
    found = torch.empty_like(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = torch.empty_like(left[..., start:stop])
        for column in range(start, stop):
            wanted = left[..., column]
            whole = nearest(wanted[..., None], steps, greatest)[..., 0].masked_fill_(zero[..., column], 0)
            found[..., column] = whole
            error = (wanted - whole * steps) / factor[..., column, column, None]
            left[..., column:stop] -= error[..., None] * factor[..., column, None, column:stop]
            errors[..., column - start] = error
        left[..., stop:] -= errors @ factor[..., start:stop, stop:]
    found = torch.empty_like(found).scatter_(-1, columns, found)
    plain = nearest(weight, steps, greatest)
    better = _changes(weight, steps, found, moments) < _changes(weight, steps, plain, moments)
    return torch.where(better[..., None], found, plain)


def _damped(moments: Tensor, doubt: float) -> Tensor:
    squares = moments.diagonal(dim1=-2, dim2=-1)
    mean = squares.mean(-1, keepdim=True)
    added = doubt * squares + torch.where(mean > 0, mean * _DAMPING, 1.0)
    return (1 - doubt) * moments + torch.diag_embed(added)


def _permuted(moments: Tensor, order: Tensor) -> Tensor:
    rows = moments.gather(-2, order[..., :, None].expand(moments.shape))
    return rows.gather(-1, order[..., None, :].expand(moments.shape))


def _factor(matrix: Tensor) -> Tensor:
    """The upper triangular U with Uᵀ U the matrix's inverse: that of the R with R Rᵀ the matrix."""
    # where the matrix is not positive definite, as far as its numbers tell, what comes out is no good, which `_changes` shows
    root = torch.linalg.cholesky_ex(matrix.flip(-1, -2)).L.flip(-1, -2)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor: Tensor = torch.linalg.solve_triangular(root, identity, upper=True)
    return factor


def _changes(weight: Tensor, steps: Tensor, whole: Tensor, moments: Tensor) -> Tensor:
    """The mean squared change of each row's results: (..., rows)."""
    error = (whole * steps[..., None] - weight).double()
    return ((error @ moments) * error).sum(-1)
