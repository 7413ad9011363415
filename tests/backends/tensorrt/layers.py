"""What each layer of TensorRT means, in PyTorch: functions of the layer, downcast, and its inputs.

Where the documentation leaves something open: equal elements come out of a top-k with the lower index first (as ONNX says,
whose operators TensorRT's parser makes into this layer).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchsmith.backends.tensorrt.library import trt

Result = Tensor | tuple[Tensor, ...]
DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}
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
    "FLOOR_DIV": lambda a, b: (a / b).floor() if a.is_floating_point() else torch.floor_divide(a, b),
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}
LOGICAL = ("AND", "OR", "XOR")
COMPARISONS = ("EQUAL", "GREATER", "LESS")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
NUMBERS = (torch.int32, torch.int64, *FLOATS)


@layer("ELEMENTWISE")
def elementwise(raw: Any, a: Tensor, b: Tensor) -> Tensor:
    name = raw.op.name
    assert a.dim() == b.dim(), f"{name} of {tuple(a.shape)} and {tuple(b.shape)}: both are to have one rank"
    assert a.dtype == b.dtype, f"{name} of {a.dtype} and {b.dtype}"
    # as the operators' documentation lists them; powers of integers are newer than the first versions
    listed = {**dict.fromkeys(LOGICAL, (torch.bool,)), **dict.fromkeys(COMPARISONS, NUMBERS), "POW": FLOATS}
    assert dtype_of(raw.get_input(0).dtype) in listed.get(name, (*NUMBERS, torch.int8)), f"{name} of {a.dtype}"
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
    assert x.dtype in NUMBERS, f"the top {wanted} of {x.dtype}"
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
        normal: Tensor = (x - mean) * torch.rsqrt(variance + raw.epsilon)
        return normal * scale + shift
    assert axes == list(range(2, x.dim())), f"{groups} groups with the axes {axes}"
    by_group = x.reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(by_group, [2], correction=0, keepdim=True)
    found = ((by_group - mean) * torch.rsqrt(variance + raw.epsilon)).reshape(x.shape)
    if not getattr(raw, "is_v2", False):
        assert scale.shape[1] == groups
        scale, shift = (t.repeat_interleave(x.shape[1] // groups, 1) for t in (scale, shift))
    return found * scale + shift


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
    """softmax(q kᵀ, masked) v, not scaled. A mask of bools keeps what is true, another one is added. What the softmax gives may be
    quantized, by a step that comes last.
    """
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
    weights = scores.softmax(-1) if whole.norm_op.name == "SOFTMAX" else scores
    if whole.normalization_quantize_scale is not None:
        step, dtype = rest[-1], dtype_of(whole.normalization_quantize_to_type)
        assert step is not None and step.numel() == 1 and dtype == torch.float8_e4m3fn
        weights = (weights.float() / step).clamp(-448, 448).to(dtype).to(v.dtype) * step
    return weights @ v


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
