"""What each layer of TensorRT means, in PyTorch: functions of the layer, downcast, and its inputs.

Where the documentation leaves something open: equal elements come out of a top-k with the lower index first (as ONNX says,
whose operators TensorRT's parser makes of this layer); a resize finds positions by the lengths, also where scales are set;
the cubic one repeats the border.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.backends.tensorrt.resampling import resized
from torchsmith.backends.tensorrt.library import trt

Result = Tensor | tuple[Tensor, ...]
LAYERS: dict[str, Callable[..., Any]] = {}
# Layers that move elements about or look at their bits: they get 16-bit floats as such.
READS = {"CAST", "IDENTITY", "SHUFFLE", "SLICE", "SHAPE", "GATHER", "SCATTER", "SELECT", "CONCATENATION", "SQUEEZE", "UNSQUEEZE"}


@dataclass(frozen=True)
class Layer:
    """kind: a name of `LayerType`; raw: TensorRT's own; inputs: None where an optional one is not given."""

    kind: str
    raw: Any
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def layer(kind: str) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    def register(function: Callable[..., Result]) -> Callable[..., Result]:
        LAYERS[kind] = function
        return function

    return register


# ---- values -----------------------------------------------------------------------------------------------------------------


def dtype_of(data_type: Any) -> torch.dtype:
    from tests.backends.tensorrt.evaluate import DTYPES

    return DTYPES[data_type.name]


def given_weights(weights: Any) -> Tensor | None:
    """The layer's weights, flat; None where it has none.

    TensorRT gives those that NumPy has a dtype for as an array. Of others (bfloat16) Python gets neither array nor address,
    so that is read out of the object, whose only field is a pointer to {type, address, count}.
    """
    if not isinstance(weights, trt().Weights):
        return torch.from_numpy(weights.copy()) if weights.size else None

    class Fields(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int32), ("address", ctypes.c_void_p), ("count", ctypes.c_int64)]

    fields = Fields.from_address(ctypes.c_void_p.from_address(id(weights) + object.__basicsize__).value or 0)
    assert (fields.type, fields.count) == (int(weights.dtype), weights.size), "TensorRT's Weights are laid out differently"
    if not fields.count:
        return None
    read = bytearray(ctypes.string_at(fields.address, weights.nbytes))
    return torch.frombuffer(read, dtype=dtype_of(weights.dtype))


@layer("CONSTANT")
def constant(raw: Any) -> Tensor:
    found = given_weights(raw.weights)
    shape = tuple(raw.shape)
    return torch.empty(shape, dtype=dtype_of(raw.get_output(0).dtype)) if found is None else found.reshape(shape)


@layer("CAST")
def cast(raw: Any, x: Tensor) -> Tensor:
    return x.to(dtype_of(raw.to_type))


@layer("IDENTITY")
def identity(raw: Any, x: Tensor) -> Tensor:
    return x


@layer("FILL")
def fill(raw: Any, shape: Tensor | None = None, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """Evenly spaced numbers: alpha + i * beta, i counted along each dimension; beta has a step for each."""
    assert raw.operation == trt().FillOperation.LINSPACE, f"{raw.operation} gives random numbers"
    dtype = dtype_of(raw.to_type)
    sizes = tuple(raw.shape) if shape is None else tuple(shape.tolist())
    first = torch.tensor(raw.alpha, dtype=dtype) if alpha is None else alpha
    steps = (torch.tensor([raw.beta], dtype=dtype) if beta is None else beta).reshape(-1)
    assert first.dtype == steps.dtype == dtype and first.dim() == 0 and len(steps) == len(sizes)
    result = first.expand(sizes).clone()
    for axis, step in enumerate(steps):
        result += (torch.arange(sizes[axis], dtype=dtype) * step).reshape(-1, *[1] * (len(sizes) - axis - 1))
    return result


# ---- pointwise --------------------------------------------------------------------------------------------------------------


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divided,
    "POW": torch.pow,
    "FLOOR_DIV": torch.floor_divide,
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}
LOGICAL = ("AND", "OR", "XOR")


@layer("ELEMENTWISE")
def elementwise(raw: Any, a: Tensor, b: Tensor) -> Tensor:
    name = raw.op.name
    assert a.dim() == b.dim(), f"{name} of {tuple(a.shape)} and {tuple(b.shape)}: both are to have one rank"
    assert a.dtype == b.dtype, f"{name} of {a.dtype} and {b.dtype}"
    if a.dtype == torch.bool or name in LOGICAL:
        assert a.dtype == torch.bool and name in (*LOGICAL, "EQUAL"), f"{name} of {a.dtype}"
    return ELEMENTWISE[name](a, b)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    **{n.upper(): getattr(torch, n) for n in ("exp", "log", "sqrt", "abs", "neg", "sin", "cos", "tan", "sinh", "cosh", "asin")},
    **{n.upper(): getattr(torch, n) for n in ("acos", "atan", "asinh", "acosh", "atanh", "ceil", "floor", "erf", "sign", "round")},
    **{n.upper(): getattr(torch, n) for n in ("isinf", "isnan")},
    "RECIP": torch.reciprocal,
    "NOT": torch.logical_not,
}


@layer("UNARY")
def unary(raw: Any, x: Tensor) -> Tensor:
    name = raw.op.name
    kinds = {"NOT": x.dtype == torch.bool, "ABS": True, "NEG": True, "SIGN": True}
    allowed = kinds.get(name, x.is_floating_point()) and (name == "NOT" or x.dtype != torch.bool)
    assert allowed, f"{name} of {x.dtype}"
    return UNARY[name](x)


ACTIVATION: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "RELU": lambda x, a, b: x.relu(),
    "SIGMOID": lambda x, a, b: x.sigmoid(),
    "TANH": lambda x, a, b: x.tanh(),
    "LEAKY_RELU": lambda x, a, b: torch.where(x >= 0, x, a * x),
    "ELU": lambda x, a, b: torch.where(x >= 0, x, a * x.expm1()),
    "SELU": lambda x, a, b: torch.where(x > 0, b * x, b * (a * x.exp() - a)),
    "SOFTSIGN": lambda x, a, b: x / (1 + x.abs()),
    "SOFTPLUS": lambda x, a, b: a * torch.logaddexp(b * x, torch.zeros(())),
    "CLIP": lambda x, a, b: x.minimum(torch.tensor(b)).maximum(torch.tensor(a)),
    "HARD_SIGMOID": lambda x, a, b: (a * x + b).clamp(0, 1),
    "SCALED_TANH": lambda x, a, b: a * torch.tanh(b * x),
    "THRESHOLDED_RELU": lambda x, a, b: torch.where(x > a, x, torch.zeros(())),
    "GELU_ERF": lambda x, a, b: F.gelu(x),
    "GELU_TANH": lambda x, a, b: F.gelu(x, approximate="tanh"),
}


@layer("ACTIVATION")
def activation(raw: Any, x: Tensor) -> Tensor:
    assert x.is_floating_point() or (raw.type.name == "RELU" and x.dtype in (torch.int32, torch.int64)), f"{raw.type} of {x.dtype}"
    return ACTIVATION[raw.type.name](x, raw.alpha, raw.beta)


@layer("PARAMETRIC_RELU")
def parametric_relu(raw: Any, x: Tensor, slope: Tensor) -> Tensor:
    assert x.dim() == slope.dim()
    return torch.where(x >= 0, x, x * slope)


@layer("SELECT")
def select(raw: Any, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    assert condition.dim() == a.dim() == b.dim() and condition.dtype == torch.bool and a.dtype == b.dtype
    return torch.where(condition, a, b)


# ---- over axes --------------------------------------------------------------------------------------------------------------


def axes_of(mask: int) -> list[int]:
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


def _products(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True, dtype=x.dtype)
    return x


@layer("REDUCE")
def reduce(raw: Any, x: Tensor) -> Tensor:
    axes, name = axes_of(raw.axes), raw.op.name
    assert axes and max(axes) < x.dim(), f"a reduction of {tuple(x.shape)} over {axes}"
    assert x.dtype != torch.bool, f"{name} of {x.dtype}"
    result = {
        "SUM": lambda: x.sum(axes, keepdim=True, dtype=x.dtype),
        "PROD": lambda: _products(x, axes),
        "MAX": lambda: x.amax(axes, keepdim=True),
        "MIN": lambda: x.amin(axes, keepdim=True),
        "AVG": lambda: x.mean(axes, keepdim=True),
    }[name]()
    return result if raw.keep_dims else result.reshape([n for axis, n in enumerate(x.shape) if axis not in axes])


@layer("SOFTMAX")
def softmax(raw: Any, x: Tensor) -> Tensor:
    (axis,) = axes_of(raw.axes)
    return x.softmax(axis)


@layer("CUMULATIVE")
def cumulative(raw: Any, x: Tensor, axis: Tensor) -> Tensor:
    assert raw.op == trt().CumulativeOperation.SUM
    dim = int(axis)
    turned = x.flip(dim) if raw.reverse else x
    sums = turned.cumsum(dim, dtype=x.dtype) - (turned if raw.exclusive else 0)
    return sums.flip(dim) if raw.reverse else sums


@layer("TOPK")
def top_k(raw: Any, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    (axis,) = axes_of(raw.axes)
    wanted = raw.k if k is None else int(k)
    assert 0 < wanted <= min(x.shape[axis], 3840) and x.dim() - axis <= 4, f"the top {wanted} of {tuple(x.shape)} along {axis}"
    assert x.dtype != torch.bool
    order = torch.sort(x, dim=axis, descending=raw.op.name == "MAX", stable=True)
    indices = order.indices.narrow(axis, 0, wanted).to(dtype_of(raw.get_output(1).dtype))
    return order.values.narrow(axis, 0, wanted), indices


@layer("NORMALIZATION")
def normalization(raw: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Over the axes, and over each group's channels where there are several; scales go by groups before version 2 of the layer."""
    axes, groups = axes_of(raw.axes), raw.num_groups
    assert scale.dim() == shift.dim() == x.dim()
    if groups == 1:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + raw.epsilon) * scale + shift
    assert axes == list(range(2, x.dim())), f"{groups} groups with the axes {axes}"
    by_group = x.unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(by_group, list(range(2, by_group.dim())), correction=0, keepdim=True)
    found = ((by_group - mean) * torch.rsqrt(variance + raw.epsilon)).flatten(1, 2)
    if not getattr(raw, "is_v2", False):
        assert scale.shape[1] == groups
        scale, shift = (t.repeat_interleave(x.shape[1] // groups, 1) for t in (scale, shift))
    return found * scale + shift


# ---- shapes -----------------------------------------------------------------------------------------------------------------


@layer("SHAPE")
def shape(raw: Any, x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)


@layer("SHUFFLE")
def shuffle(raw: Any, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    x = x.permute(tuple(raw.first_transpose)[: x.dim()])
    wanted = _dims(raw.reshape_dims) if sizes is None else sizes.tolist()
    if wanted is not None:
        if raw.zero_is_placeholder:
            wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
        x = x.reshape(wanted)
    return x.permute(tuple(raw.second_transpose)[: x.dim()])


def _dims(found: Any) -> list[int] | None:
    """Dims that may not have been set."""
    return None if found is None or len(found) < 0 else list(found)


@layer("SQUEEZE")
def squeeze(raw: Any, x: Tensor, axes: Tensor) -> Tensor:
    assert all(x.shape[axis] == 1 for axis in axes.tolist())
    return x.squeeze(tuple(axes.tolist()))


@layer("UNSQUEEZE")
def unsqueeze(raw: Any, x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(axes.tolist()):
        x = x.unsqueeze(axis)
    return x


@layer("CONCATENATION")
def concatenation(raw: Any, *parts: Tensor) -> Tensor:
    assert len({t.dtype for t in parts}) == 1 and len({t.dim() for t in parts}) == 1
    return torch.cat(parts, raw.axis)


@layer("SLICE")
def slice_(raw: Any, x: Tensor, *given: Tensor | None) -> Tensor:
    start, size, stride, value, axes = (*given, *[None] * (5 - len(given)))
    starts = list(raw.start) if start is None else start.tolist()
    sizes = list(raw.shape) if size is None else size.tolist()
    strides = list(raw.stride) if stride is None else stride.tolist()
    which = axes.tolist() if axes is not None else _dims(raw.axes) or list(range(x.dim()))
    assert len(starts) == len(sizes) == len(strides) == len(which), (
        f"a slice of {tuple(x.shape)}: {starts} {sizes} {strides} {which}"
    )
    filled = torch.zeros((), dtype=x.dtype) if value is None else value.reshape(())
    assert filled.dtype == x.dtype
    for axis, first, count, step in zip(which, starts, sizes, strides, strict=True):
        at = first + step * torch.arange(count)
        length, outside = x.shape[axis], (at < 0) | (at >= x.shape[axis])
        if raw.mode.name == "STRICT_BOUNDS":
            assert not outside.any(), f"a slice of {tuple(x.shape)} along {axis}: {first}, {count} times, by {step}"
        elif raw.mode.name == "WRAP":
            at = at % length
        elif raw.mode.name == "REFLECT":
            period = max(2 * (length - 1), 1)
            at = (length - 1) - ((at % period) - (length - 1)).abs()
        else:
            at = at.clamp(0, max(length - 1, 0))
        x = x.index_select(axis, at) if length else x.new_empty((*x.shape[:axis], count, *x.shape[axis + 1 :]))
        if raw.mode.name == "FILL":
            x = torch.where(outside.reshape(-1, *[1] * (x.dim() - axis - 1)), filled, x)
    return x


@layer("PADDING")
def padding(raw: Any, x: Tensor) -> Tensor:
    (top, left), (bottom, right) = raw.pre_padding_nd, raw.post_padding_nd
    return F.pad(x, (left, right, top, bottom))


# ---- by index ---------------------------------------------------------------------------------------------------------------


def _inside(index: Tensor, size: int) -> Tensor:
    assert index.dtype in (torch.int32, torch.int64), f"an index of {index.dtype}"
    assert not index.numel() or (int(index.min()) >= 0 and int(index.max()) < size), f"indices out of 0 … {size - 1}"
    return index.long()


@layer("GATHER")
def gather(raw: Any, x: Tensor, index: Tensor) -> Tensor:
    name, together = raw.mode.name, raw.num_elementwise_dims
    if name == "ELEMENT":
        return x.gather(raw.axis, _inside(index, x.shape[raw.axis]))
    if name == "ND":
        return _by_tuples(x, index, together)
    if together == 0:
        flat = x.index_select(raw.axis, _inside(index, x.shape[raw.axis]).reshape(-1))
        return flat.reshape(*x.shape[: raw.axis], *index.shape, *x.shape[raw.axis + 1 :])
    rows = [
        r.index_select(raw.axis - 1, _inside(i, x.shape[raw.axis]).reshape(-1)).unflatten(raw.axis - 1, i.shape)
        for r, i in zip(x, index, strict=True)
    ]
    return torch.stack(rows)


def _by_tuples(x: Tensor, index: Tensor, together: int) -> Tensor:
    if together:
        return torch.stack([_by_tuples(a, i, together - 1) for a, i in zip(x, index, strict=True)])
    return x[tuple(_inside(index[..., d], x.shape[d]) for d in range(index.shape[-1]))]


@layer("SCATTER")
def scatter(raw: Any, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Which of several values for one place wins is not said, so that there are to be none (or equal ones)."""
    assert x.dtype == values.dtype
    if raw.mode.name == "ELEMENT":
        where = _inside(index, x.shape[raw.axis])
        found = x.scatter(raw.axis, where, values)
        assert torch.equal(found.gather(raw.axis, where), values), "a scatter of several values to one place"
        return found
    places = tuple(_inside(index[..., d], x.shape[d]) for d in range(index.shape[-1]))
    found = x.index_put(places, values)
    assert torch.equal(found[places], values), "a scatter of several values to one place"
    return found


@layer("ONE_HOT")
def one_hot(raw: Any, index: Tensor, values: Tensor, depth: Tensor) -> Tensor:
    hot = F.one_hot(_inside(index, int(depth)), int(depth)).bool()
    return torch.where(hot.movedim(-1, raw.axis), values[1], values[0])


# ---- linear algebra ---------------------------------------------------------------------------------------------------------


@layer("MATRIX_MULTIPLY")
def matrix_multiply(raw: Any, a: Tensor, b: Tensor) -> Tensor:
    assert a.is_floating_point() and a.dtype == b.dtype, f"a product of {a.dtype} and {b.dtype}"
    a, b = (t.mT if op.name == "TRANSPOSE" else t for t, op in ((a, raw.op0), (b, raw.op1)))
    vectors = [op.name == "VECTOR" for op in (raw.op0, raw.op1)]
    a, b = (a.unsqueeze(-2) if vectors[0] else a), (b.unsqueeze(-1) if vectors[1] else b)
    assert a.dim() == b.dim(), f"a product of {tuple(a.shape)} and {tuple(b.shape)}: both are to have one rank"
    result = a @ b
    result = result.squeeze(-1) if vectors[1] else result
    return result.squeeze(-1 if vectors[1] else -2) if vectors[0] else result


@layer("ATTENTION_INPUT")
def attention(raw: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Tensor:
    """softmax(q kᵀ, masked) v, not scaled. A mask of bools keeps what is true, another one is added."""
    whole = raw.attention
    assert q.dim() == k.dim() == v.dim() == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2], "attention takes (B, H, N, D)"
    scores = q @ k.mT
    mask = rest[0] if whole.mask is not None else None
    causal = whole.causal_kind.name if hasattr(whole, "causal_kind") else "UPPER_LEFT" if whole.causal else "NONE"
    if mask is not None:
        assert causal == "NONE" and mask.dim() == 4
        scores = torch.where(mask, scores, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if causal != "NONE":
        n, m = scores.shape[-2:]
        seen = torch.ones(n, m, dtype=torch.bool).tril(0 if causal == "UPPER_LEFT" else m - n)
        scores = torch.where(seen, scores, -torch.inf)
    return (scores.softmax(-1) if whole.norm_op.name == "SOFTMAX" else scores) @ v


@layer("ATTENTION_OUTPUT")
def attention_output(raw: Any, x: Tensor) -> Tensor:
    return x


# ---- numbers of fewer bits --------------------------------------------------------------------------------------------------


def _along(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    return scale.reshape(-1, *[1] * (x.dim() - axis % x.dim() - 1)) if scale.dim() == 1 and scale.numel() > 1 else scale.reshape(())


@layer("QUANTIZE")
def quantize(raw: Any, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    assert zero is None or not zero.any(), "TensorRT quantizes symmetrically"
    dtype = dtype_of(raw.get_output(0).dtype)
    scaled = x.float() / _along(scale.float(), x, raw.axis)
    return scaled.round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else scaled.clamp(-448, 448).to(dtype)


@layer("DEQUANTIZE")
def dequantize(raw: Any, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    assert zero is None or not zero.any(), "TensorRT quantizes symmetrically"
    return x.float() * _along(scale.float(), x, raw.axis)


# ---- images -----------------------------------------------------------------------------------------------------------------


def _sides(raw: Any, x: Tensor, window: Sequence[int]) -> tuple[list[int], list[int]]:
    mode, stride = raw.padding_mode.name, list(raw.stride_nd)
    if mode.startswith("EXPLICIT"):
        return list(raw.pre_padding), list(raw.post_padding)
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[2:], stride, window, strict=True)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (less, more) if mode == "SAME_UPPER" else (more, less)


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    return F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair], value=value)


@layer("CONVOLUTION")
def convolution(raw: Any, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    size, groups, dilation = list(raw.kernel_size_nd), raw.num_groups, list(raw.dilation_nd)
    weight, added = _weights(raw, x, kernel, bias)
    weight = weight.reshape(raw.num_output_maps, -1, *size)
    before, after = _sides(raw, x, [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)])
    return torch.convolution(
        _padded(x, before, after), weight, added, list(raw.stride_nd), [0] * len(size), dilation, False, [0] * len(size), groups
    )


@layer("DECONVOLUTION")
def deconvolution(raw: Any, x: Tensor, kernel: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The whole of it, cut by the padding; a negative one adds zeros (and the bias)."""
    size, rank = list(raw.kernel_size_nd), x.dim() - 2
    assert raw.padding_mode.name == "EXPLICIT_ROUND_DOWN", f"a deconvolution with {raw.padding_mode}"
    weight, added = _weights(raw, x, kernel, bias)
    weight = weight.reshape(x.shape[1], -1, *size)
    none = [0] * rank
    found = torch.convolution(x, weight, None, list(raw.stride_nd), none, list(raw.dilation_nd), True, none, raw.num_groups)
    cut = _padded(found, [-n for n in raw.pre_padding], [-n for n in raw.post_padding])
    return cut if added is None else cut + added.reshape(-1, *[1] * rank)


def _weights(raw: Any, x: Tensor, kernel: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Kernel and bias: inputs, or given as the layer was added. 16-bit ones are of x's type, which is wide here."""
    weight, added = given_weights(raw.kernel) if kernel is None else kernel, given_weights(raw.bias) if bias is None else bias
    assert weight is not None
    declared = dtype_of(raw.get_input(0).dtype)
    for tensor, given in ((weight, kernel), (added, bias)):
        assert tensor is None or tensor.dtype == (declared if given is None else x.dtype), (
            f"weights of {tensor.dtype}, x {declared}"
        )
    return weight.to(x.dtype), None if added is None else added.to(x.dtype)


@layer("POOLING")
def pooling(raw: Any, x: Tensor) -> Tensor:
    window, stride = list(raw.window_size_nd), list(raw.stride_nd)
    before, after = _sides(raw, x, window)
    up = raw.padding_mode.name == "EXPLICIT_ROUND_UP"
    # windows past the padded end, which rounding up asks for, see nothing there
    more = [-(n + b + a - k) % s if up else 0 for n, b, a, k, s in zip(x.shape[2:], before, after, window, stride, strict=True)]
    kind = raw.type.name
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    axes = list(range(x.dim(), x.dim() + len(window)))

    def windows(t: Tensor) -> Tensor:
        for axis, (k, s) in enumerate(zip(window, stride, strict=True)):
            t = t.unfold(2 + axis, k, s)
        return t

    if kind == "MAX":
        sides = [b + m for b, m in zip(after, more, strict=True)]
        return windows(_padded(x, before, sides, lowest)).amax(axes)
    assert kind == "AVERAGE" and x.is_floating_point(), f"{kind} pooling of {x.dtype}"
    counted = torch.ones_like(x)
    if not raw.average_count_excludes_padding:
        counted = _padded(counted, before, after, 1.0)
        sums = windows(_padded(_padded(x, before, after), [0] * len(more), more)).sum(axes)
        return sums / windows(_padded(counted, [0] * len(more), more)).sum(axes)
    sides = [b + m for b, m in zip(after, more, strict=True)]
    return windows(_padded(x, before, sides)).sum(axes) / windows(_padded(counted, before, sides)).sum(axes)


@layer("RESIZE")
def resize(raw: Any, x: Tensor, sizes: Tensor | None = None) -> Tensor:
    if sizes is not None:
        wanted = sizes.tolist()
    else:
        scales = list(raw.scales)
        wanted = [int(n * s) for n, s in zip(x.shape, scales, strict=True)] if scales else list(raw.shape)
    return resized(raw, x, wanted)


@layer("GRID_SAMPLE")
def grid_sample(raw: Any, x: Tensor, grid: Tensor) -> Tensor:
    mode = {"NEAREST": "nearest", "LINEAR": "bilinear", "CUBIC": "bicubic"}[raw.interpolation_mode.name]
    outside = {"CLAMP": "border", "FILL": "zeros", "REFLECT": "reflection"}[raw.sample_mode.name]
    return F.grid_sample(x, grid, mode=mode, padding_mode=outside, align_corners=raw.align_corners)
