"""Outputs first: every side against the model in float64, before anything is timed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchsmith.bench.models import Inputs
from torchsmith.bench.sides import BASELINE, SUBJECT, Built, cast
from torchsmith.errors import InvalidInput, VerificationError
from torchsmith.testing.compare import relative_error

# what is wrong in f32 is wrong by far more; peers get room for the maths that they chose (fast activations, say)
F32_TOLERANCE = {SUBJECT: 1e-5, "peers": 1e-4}
# in 16 bits, and in f32 where the model itself is that sensitive: times eager's own error in the same precision
FACTOR = {SUBJECT: 1.2, "peers": 2.0}
# of eager itself, and of everyone where eager cannot run in that precision
COARSE_TOLERANCE = {"f32": 1e-2, "bf16": 0.25, "f16": 0.05, "int8": 0.25}


def reference(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The output tensors of a float64 copy of `module`. Raises InvalidInput where they hold NaN or infinity."""
    given = cast(inputs, torch.float64)
    expected = tensors(copy.deepcopy(module).double()(*given.args, **given.kwargs))
    if not expected:
        raise InvalidInput("the model returns no tensor, so that there is nothing to compare")
    if any(not bool(leaf.isfinite().all()) for leaf in expected):
        raise InvalidInput("the model gives NaN or infinity in float64 already; give it other weights or inputs")
    return expected


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a pytree, in its order."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def worst_error(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error of all output tensors (see `relative_error`).

    Infinite where their number, a shape, or a kind of number (floating or not) differs, or where one is not finite.
    """
    if len(outputs) != len(expected):
        return math.inf
    return max(_leaf_error(out, want) for out, want in zip(outputs, expected, strict=True))


def _leaf_error(out: Tensor, want: Tensor) -> float:
    same_kind = out.is_floating_point() == want.is_floating_point()
    return relative_error(out, want) if same_kind else math.inf


def outputs_of(built: Built, inputs: Inputs) -> list[Tensor]:
    """The output tensors of one call, copied, as some sides use their memory again."""
    return [leaf.clone() for leaf in tensors(built.bind(inputs)())]


def tolerance(side: str, precision: str, eager_error: float | None) -> float:
    """The largest relative error that passes. eager_error: what eager PyTorch has in the same precision, where it has it."""
    if side == BASELINE or eager_error is None:
        return COARSE_TOLERANCE[precision]
    who = SUBJECT if side == SUBJECT else "peers"
    least = F32_TOLERANCE[who] if precision == "f32" else 0.0
    return max(least, FACTOR[who] * eager_error)


def passes(error: float, allowed: float) -> bool:
    """NaN and infinity never pass."""
    return math.isfinite(error) and error <= allowed


def stop_if_wrong(where: str, error: float, allowed: float) -> None:
    """Raise VerificationError for a wrong output of ours: no speed is reported beside one."""
    if not passes(error, allowed):
        raise VerificationError(
            f"torchsmith is wrong on {where}: its relative error against float64 is {error:.2g}, and {allowed:.2g} is allowed; "
            "nothing was timed. VERIFY=2 names the pass that changes the results"
        )
