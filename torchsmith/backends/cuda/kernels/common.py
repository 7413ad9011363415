"""Functions that every kernel may call, and that generated text may name."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
from __future__ import annotations

import os

import triton
import triton.language as tl

# Triton's interpreter multiplies bfloat16 wrongly; there operands are widened first.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def relu(x):
    """x where it is positive, else 0; NaN stays NaN."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clip(x, low, high):
    return tl.minimum(tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL), high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sqrt(x):
    return tl.sqrt_rn(x.to(tl.float32)) if x.dtype != tl.float64 else tl.sqrt(x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)). Five instructions, two of them of the special function unit, where a division would take a dozen."""
    if INTERPRETED or x.dtype == tl.float64:
        return tl.sigmoid(x)
    else:
        return reciprocal(1.0 + exp2(x * -1.4426950408889634))


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def exp2(x):
    """In float32, to 2 units in the last place; what is smaller than the least normal number is 0."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """In float32, to 1 unit in the last place; 1 / infinity is 0."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def tanh(x):
    """Near zero by its series: there 2 * sigmoid(2x) - 1 cancels."""
    square = x * x
    series = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.15, series, 2.0 * sigmoid(2.0 * x) - 1.0)


@triton.jit
def softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_half(x):
    """gelu to 1e-6, for values that are rounded to half precision: a fourth of erf's instructions.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, whose error is below 1.5e-7.
    """
    a = tl.minimum(tl.abs(x), 30.0)
    t = reciprocal(1.0 + 0.2316418882663604 * a)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return relu(x) - 0.5 * a * (series * exp2(a * a * -0.7213475204444817))


@triton.jit
def gelu_tanh(x):
    """0.5 * (1 + tanh(y)) is the sigmoid of 2y."""
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def tanh_coarse(x):
    """tanh to 1 part in 2,048, in one instruction, for what is rounded to int8; the other coarse functions are made of it."""
    if INTERPRETED:
        return tanh(x)
    else:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sigmoid_coarse(x):
    return 0.5 + 0.5 * tanh_coarse(0.5 * x)


@triton.jit
def silu_coarse(x):
    half = 0.5 * x
    return half + half * tanh_coarse(half)


@triton.jit
def gelu_coarse(x):
    """By the two numbers that leave tanh's form of gelu 2.7e-4 off at most, where the usual ones leave it 4.7e-4 off."""
    half = 0.5 * x
    return half + half * tanh_coarse(x * (0.80015708 + 0.03470089 * x * x))


@triton.jit
def gelu_tanh_coarse(x):
    half = 0.5 * x
    return half + half * tanh_coarse(x * (0.7978845608028654 + 0.035677408136300125 * x * x))


@triton.jit
def nearest_tf32(x):
    """Rounded as NVIDIA's libraries do; tensor cores cut off what is too much, which errs more than twice as far, to one side."""
    return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, summed in float32, of int8 in int32. PRECISION: of float32 operands ("ieee", "tf32", "tf32x3").

    Of float8: "fast", summed as tensor cores do, which keep 13 bits behind the leading one on Hopper; "promoted", where what they
    sum up is added to float32 sums after at most 128 terms.
    """
    if a.dtype == tl.int8:
        return tl.dot(a, b, acc, out_dtype=tl.int32)
    elif INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif a.dtype == tl.float8e4nv:
        if PRECISION == "promoted":
            TERMS: tl.constexpr = a.shape[1]
            return tl.dot(a, b, acc, max_num_imprecise_acc=TERMS if TERMS < 128 else 128)
        else:
            return tl.dot(a, b, acc)
    elif PRECISION == "tf32" and a.dtype == tl.float32:
        return tl.dot(nearest_tf32(a), nearest_tf32(b), acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Before the first access to what earlier kernels write: with programmatic dependent launch a kernel starts before they end."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Once a kernel needs no more room than it has: the next one may be put on the device, and waits there."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
