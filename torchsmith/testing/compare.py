"""How far results may lie from their float64 reference: one tolerance a dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# Relative error in the 2-norm of one op. Integers and bools are exact.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def relative_error(given: Tensor, reference: Tensor) -> float:
    """‖given − reference‖ / ‖reference‖, in float64. Infinite where NaNs or infinities differ, 0 where both are empty."""
    a, b = given.detach().to("cpu", torch.float64), reference.detach().to("cpu", torch.float64)
    if a.shape != b.shape:
        return float("inf")
    odd = ~torch.isfinite(a) | ~torch.isfinite(b)
    if not torch.equal(a[odd].nan_to_num(nan=1.5), b[odd].nan_to_num(nan=1.5)):
        return float("inf")
    a, b = a[~odd], b[~odd]
    distance, size = float(torch.linalg.vector_norm(a - b)), float(torch.linalg.vector_norm(b))
    return distance / size if size else distance


def check_close(given: Any, reference: Any, dtype: torch.dtype | None = None, what: str = "output") -> None:
    """Assert that every tensor of `given` lies within the tolerance of its dtype (or of `dtype`) around `reference`'s."""
    ours, theirs = pytree.tree_leaves(given), pytree.tree_leaves(reference)
    assert len(ours) == len(theirs), f"{what}: {len(ours)} tensors, the reference has {len(theirs)}"
    for index, (a, b) in enumerate(zip(ours, theirs)):
        if not isinstance(b, Tensor):
            assert a == b, f"{what} {index}: {a!r}, the reference has {b!r}"
            continue
        assert a.shape == b.shape, f"{what} {index}: shape {tuple(a.shape)}, the reference has {tuple(b.shape)}"
        error, limit = relative_error(a, b), TOLERANCES.get(dtype or a.dtype, 0.0)
        assert error <= limit, f"{what} {index}: relative error {error:.3g}, allowed {limit:.3g}"


def doubled(tree: Any) -> Any:
    """Every floating tensor in float64, for references."""
    return pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, tree)
