"""Variances, norms and other reductions made of several ops."""

from __future__ import annotations

import math

import torch

from torchsmith.ir.builder import current, expected
from torchsmith.ir.dim import product
from torchsmith.ir.graph import Value
from torchsmith.ops.binary import Binary, binary
from torchsmith.ops.clamp import Clamp
from torchsmith.ops.compare import compare
from torchsmith.ops.expand import expanded
from torchsmith.ops.promote import cast, scalar, widened
from torchsmith.ops.reduce import Dims, all_dims, reduced
from torchsmith.ops.registry import converter
from torchsmith.ops.reshape import reshaped
from torchsmith.ops.unary import Unary
from torchsmith.ops.where import Where

aten = torch.ops.aten


def _variance(x: Value, dims: Dims, correction: float, keepdim: bool) -> tuple[Value, Value]:
    """Variance and mean, in float32 at least."""
    axes = all_dims(x, dims)
    x = widened(x)
    mean = reduced("mean", x, axes, True)
    distance = Binary("sub")(x, mean)
    squares = reduced("sum", Binary("mul")(distance, distance), axes, keepdim)
    count = product([x.type.shape[axis] for axis in axes])
    degrees = Clamp(0, None)(binary("sub", scalar(count, x.type.dtype), correction))
    return Binary("div")(squares, degrees), reshaped(mean, squares.type.shape)


def _register(name: str, root: bool, with_mean: bool) -> None:
    """var, std, var_mean or std_mean."""

    def finish(x: Value, dims: Dims, correction: float, keepdim: bool) -> Value | tuple[Value, Value]:
        variance, mean = _variance(x, dims, correction, keepdim)
        spread = cast(Unary("sqrt")(variance) if root else variance, x.type.dtype)
        return (spread, cast(mean, x.type.dtype)) if with_mean else spread

    @converter(getattr(aten, name).default)
    def convert(x: Value, unbiased: bool = True) -> Value | tuple[Value, Value]:
        return finish(x, None, float(unbiased), False)

    @converter(getattr(aten, name).dim)
    def convert_dim(x: Value, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> Value | tuple[Value, Value]:
        return finish(x, dims, float(unbiased), keepdim)

    @converter(getattr(aten, name).correction)
    def convert_correction(
        x: Value, dims: Dims = None, *, correction: float | None = None, keepdim: bool = False
    ) -> Value | tuple[Value, Value]:
        return finish(x, dims, 1.0 if correction is None else float(correction), keepdim)


_register("var", root=False, with_mean=False)
_register("std", root=True, with_mean=False)
_register("var_mean", root=False, with_mean=True)
_register("std_mean", root=True, with_mean=True)


@converter(aten.linalg_vector_norm.default)
def vector_norm(x: Value, ord: float = 2, dims: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Value:
    x = cast(x, dtype or x.type.dtype)
    if ord in (1, 2):
        return cast(reduced(f"l{int(ord)}", x, dims, keepdim), expected().dtype)
    if ord == 0:
        return reduced("sum", cast(compare("ne", x, 0), x.type.dtype), dims, keepdim)
    size = Unary("abs")(x)
    if math.isinf(ord):
        return reduced("max" if ord > 0 else "min", size, dims, keepdim)
    powers = reduced("sum", binary("pow", widened(size), float(ord)), dims, keepdim)
    return cast(binary("pow", powers, 1.0 / ord), x.type.dtype)


@converter(aten.norm.Scalar, aten.norm.ScalarOpt_dim, aten.norm.ScalarOpt_dtype, aten.norm.ScalarOpt_dim_dtype)
def norm(x: Value, p: float | None = 2, dims: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Value:
    return vector_norm(x, 2 if p is None else p, dims, keepdim, dtype=dtype)


@converter(aten.logsumexp.default, aten.special_logsumexp.default)
def logsumexp(x: Value, dims: Dims, keepdim: bool = False) -> Value:
    x = widened(cast(x, expected().dtype))
    largest = reduced("max", x, dims, True)
    # where all are -inf (or one is inf), the difference to the largest would be NaN
    shift = Where()(Unary("isfinite")(largest), largest, scalar(0, x.type.dtype))
    total = reduced("sum", Unary("exp")(Binary("sub")(x, shift)), dims, keepdim)
    return cast(Binary("add")(Unary("log")(total), reshaped(shift, total.type.shape)), expected().dtype)


@converter(aten.log_sigmoid_forward.default)
def log_sigmoid_forward(x: Value) -> tuple[Value, Value]:
    # the second output is what the backward pass would use
    buffer = current().expected[1]
    return Unary("logsigmoid")(x), expanded(scalar(0, buffer.dtype), buffer.shape)
