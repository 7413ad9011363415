"""Functions of numbers that Triton has no name for, in float32 to a few units in the last place; generated text names them.

NaN and infinities give what PyTorch's functions of the same names give.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from torchsmith.backends.cuda.kernels.common import sqrt


@triton.jit
def log1p(x):
    """By Kahan's correction: (1 + x) - 1 is what log saw instead of x."""
    u = 1.0 + x
    d = u - 1.0
    return tl.where(d == 0.0, x, tl.where(u < float("inf"), tl.log(u) * (x / tl.where(d == 0.0, 1.0, d)), u))


@triton.jit
def expm1(x):
    """By Kahan's correction: log(u) is what exp saw instead of x."""
    u = tl.exp(x)
    d = u - 1.0
    inner = d * (x / tl.where((d == 0.0) | (u == 0.0), 1.0, tl.log(u)))
    return tl.where(d == 0.0, x, tl.where((u == 0.0) | (tl.abs(x) > 20.0), d, inner))


@triton.jit
def softplus(x):
    return tl.where(x > 0.0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def logsigmoid(x):
    return tl.where(x < 0.0, x, 0.0) - log1p(tl.exp(-tl.abs(x)))


@triton.jit
def mish(x):
    """x * tanh(log(1 + e)) with e = exp(x), without the cancellation."""
    e = tl.exp(tl.where(x < 20.0, x, 20.0))
    p = e * (e + 2.0)
    return tl.where(x < 20.0, x * (p / (p + 2.0)), x)


@triton.jit
def trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    """To the nearest whole number, halves to the even one."""
    low = tl.floor(x)
    rest = x - low
    odd = low - 2.0 * tl.floor(low * 0.5)
    return tl.where(tl.abs(x) < float("inf"), tl.where((rest > 0.5) | ((rest == 0.5) & (odd != 0.0)), low + 1.0, low), x)


@triton.jit
def quantized(x, low, high):
    """The nearest whole number, halves to the even one, within low..high, as int32; NaN gives low. low, high: whole, below 2^21."""
    if x.dtype == tl.float64:
        return round_even(tl.minimum(tl.maximum(x, low), high)).to(tl.int32)
    else:
        return _shifted(x, low, high).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def rounded(x, low, high):
    """What `quantized` gives, of float32 and as it, without a conversion there and back."""
    return _shifted(x, low, high) - 12582912.0


@triton.jit
def _shifted(x, low, high):
    """1.5 * 2^23 + the whole number: there the last bit is worth one, so that the sum is rounded, and its last bits are the number.

    The limits come after the sum, which is one instruction with the product that x mostly is.
    """
    return tl.minimum(tl.maximum(x + 12582912.0, 12582912.0 + low), 12582912.0 + high)


@triton.jit
def whole(x, less):
    """x - less in float32, exactly, of int8 and uint8 by way of 2^23 + x, which has x in its last bits, without a conversion.

    x: a kernel may have made a wider number of it. less: whole, below 2^21.
    """
    if x.dtype == tl.int8:  # the first bit turned, it counts from -128
        return (x.to(tl.uint8, bitcast=True).to(tl.int32) ^ 0x4B000080).to(tl.float32, bitcast=True) - (8388736.0 + less)
    elif x.dtype == tl.uint8:
        return (x.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + less)
    else:
        return x.to(tl.float32) - less


@triton.jit
def tan(x):
    return tl.sin(x) / tl.cos(x)


@triton.jit
def sinh(x):
    a = tl.abs(x)
    e = expm1(a)
    half = tl.exp(0.5 * a)  # exp(a) overflows before sinh does
    y = tl.where(a < 20.0, 0.5 * (e + e / (e + 1.0)), (0.5 * half) * half)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def cosh(x):
    a = tl.abs(x)
    e = tl.exp(a)
    half = tl.exp(0.5 * a)
    return tl.where(a < 20.0, 0.5 * (e + 1.0 / e), (0.5 * half) * half)


@triton.jit
def asinh(x):
    a = tl.abs(x)
    small = tl.where(a < 1e9, a, 1.0)
    y = tl.where(a < 1e9, log1p(small + small * small / (1.0 + sqrt(small * small + 1.0))), tl.log(a) + 0.6931471805599453)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def acosh(x):
    t = tl.where(x < 1e9, x - 1.0, 1.0)
    y = tl.where(x < 1e9, log1p(t + sqrt(2.0 * t + t * t)), tl.log(x) + 0.6931471805599453)
    return tl.where(x < 1.0, float("nan"), y)


@triton.jit
def atanh(x):
    a = tl.abs(x)
    y = tl.where(a == 1.0, float("inf"), 0.5 * log1p(2.0 * a / tl.where(a == 1.0, 1.0, 1.0 - a)))
    return tl.where(x < 0.0, -y, y)


@triton.jit
def atan(x):
    """Cephes' atanf."""
    a = tl.abs(x)
    large, middle = a > 2.414213562373095, a > 0.4142135623730950
    t = tl.where(large, -1.0 / tl.where(large, a, 1.0), tl.where(middle, (a - 1.0) / (a + 1.0), a))
    base = tl.where(large, 1.5707963267948966, tl.where(middle, 0.7853981633974483, 0.0))
    z = t * t
    p = ((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1
    y = base + (p * z * t + t)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def _asin_series(t, z):
    """asin(t) for 0 <= t <= 0.5; z = t * t. Cephes' asinf."""
    p = (((4.2163199048e-2 * z + 2.4181311049e-2) * z + 4.5470025998e-2) * z + 7.4953002686e-2) * z + 1.6666752422e-1
    return p * z * t + t


@triton.jit
def asin(x):
    a = tl.abs(x)
    far = a > 0.5
    z = tl.where(far, 0.5 * (1.0 - a), a * a)
    t = tl.where(far, sqrt(z), a)
    y = _asin_series(t, z)
    y = tl.where(far, 1.5707963267948966 - 2.0 * y, y)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def acos(x):
    a = tl.abs(x)
    far = a > 0.5
    z = tl.where(far, 0.5 * (1.0 - a), a * a)
    t = tl.where(far, sqrt(z), a)
    y = _asin_series(t, z)
    near = tl.where(x < 0.0, 1.5707963267948966 + y, 1.5707963267948966 - y)
    return tl.where(far, tl.where(x < 0.0, 3.141592653589793 - 2.0 * y, 2.0 * y), near)


@triton.jit
def negative(x):
    """Whether the sign bit is set: also of -0.0."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) < 0
    else:
        return x.to(tl.int32, bitcast=True) < 0


@triton.jit
def copysign(x, sign):
    a = tl.abs(x)
    return tl.where(negative(sign), -a, a)


@triton.jit
def atan2(y, x):
    a, b = tl.abs(y), tl.abs(x)
    both = (a == float("inf")) & (b == float("inf"))
    ratio = tl.where(both, 1.0, tl.where((a == 0.0) & (b == 0.0), 0.0, a / tl.where((a == 0.0) & (b == 0.0), 1.0, b)))
    t = atan(ratio)
    return copysign(tl.where(negative(x), 3.141592653589793 - t, t), y)


@triton.jit
def hypot(a, b):
    a, b = tl.abs(a), tl.abs(b)
    high = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    low = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    ratio = low / tl.where((high == 0.0) | (high == float("inf")), 1.0, high)
    y = high * sqrt(1.0 + ratio * ratio)
    return tl.where((a == float("inf")) | (b == float("inf")), float("inf"), y)


@triton.jit
def erfc(x):
    """Chebyshev fit with a relative error of 1.2e-7 everywhere (Numerical Recipes, erfcc)."""
    a = tl.abs(x)
    t = 1.0 / (1.0 + 0.5 * a)
    p = -1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))
    p = 0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * p))
    y = t * tl.exp(-a * a - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * p)))
    return tl.where(x < 0.0, 2.0 - y, y)


@triton.jit
def erfinv(x):
    """Giles, Approximating the erfinv function (GPU Computing Gems, 2011), in single precision."""
    w = -tl.log((1.0 - x) * (1.0 + x))
    a = w - 2.5
    p = 3.43273939e-07 + 2.81022636e-08 * a
    p = -4.39150654e-06 + (-3.5233877e-06 + p * a) * a
    p = -0.00125372503 + (0.00021858087 + p * a) * a
    p = 1.50140941 + (0.246640727 + (-0.00417768164 + p * a) * a) * a
    b = sqrt(tl.where(w < 5.0, 5.0, w)) - 3.0
    q = 0.000100950558 - 0.000200214257 * b
    q = -0.00367342844 + (0.00134934322 + q * b) * b
    q = -0.0076224613 + (0.00573950773 + q * b) * b
    q = 2.83297682 + (1.00167406 + (0.00943887047 + q * b) * b) * b
    y = tl.where(w < 5.0, p, q) * x
    return tl.where(tl.abs(x) == 1.0, x * float("inf"), y)


@triton.jit
def power(x, y):
    """x to the power of y for floats, as C's pow."""
    whole = tl.floor(y) == y
    odd = whole & (tl.abs(y) < 16777216.0) & (y - 2.0 * tl.floor(y * 0.5) == 1.0)
    a = tl.abs(x)
    exponent = y * tl.log2(a)
    # 0 * inf in the exponent: anything to the power of 0, 1 to any power, and ±1 to the power of ±inf, is 1
    one = (y == 0.0) | (x == 1.0) | ((a == 1.0) & (tl.abs(y) == float("inf")))
    magnitude = tl.where(one, 1.0, tl.exp2(exponent))
    signed = tl.where(negative(x) & odd & (y == y), -magnitude, magnitude)
    wrong = (x < 0.0) & (a < float("inf")) & (whole == 0) & (tl.abs(y) < float("inf"))
    return tl.where(wrong, float("nan"), signed)


@triton.jit
def fmod(a, b):
    """a - b * trunc(a / b) without rounding, for quotients below 2^56; the sign of a. In float64, where the steps are exact."""
    x, y = a.to(tl.float64), b.to(tl.float64)
    for _ in tl.static_range(2):
        q = x / y
        x = x - tl.where(tl.abs(q) < 1e300, trunc(q.to(tl.float32).to(tl.float64)) if _ == 0 else trunc(q), 0.0) * y
    size = tl.abs(y)
    x = tl.where((x < 0.0) & (a > 0.0), x + size, tl.where((x > 0.0) & (a < 0.0), x - size, x))
    x = tl.where(tl.abs(b) == float("inf"), a.to(tl.float64), x)
    return tl.where((b == 0.0) | (tl.abs(a) == float("inf")), float("nan"), x).to(a.dtype)


@triton.jit
def remainder(a, b):
    """The remainder with the sign of b."""
    r = fmod(a, b)
    return tl.where((r != 0.0) & ((r < 0.0) != (b < 0.0)), r + b, r)


@triton.jit
def div_floor(a, b):
    """As PyTorch's: from the exact remainder, so that 1 // 0.1 is 9."""
    r = fmod(a, b)
    q = (a - r) / tl.where(b == 0.0, 1.0, b)
    q = tl.where((r != 0.0) & ((r < 0.0) != (b < 0.0)), q - 1.0, q)
    low = tl.floor(q)
    q = tl.where(q - low > 0.5, low + 1.0, low)
    return tl.where(b == 0.0, a / b, q)


@triton.jit
def int_div_floor(a, b):
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)


@triton.jit
def int_remainder(a, b):
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def left_shift(a, b, BITS: tl.constexpr):
    """0 where b is no number of bits."""
    outside = (b < 0) | (b >= BITS)
    return tl.where(outside, 0, a << tl.where(outside, 0, b))


@triton.jit
def right_shift(a, b, BITS: tl.constexpr):
    """The sign fills in; all of it where b is no number of bits."""
    outside = (b < 0) | (b >= BITS)
    return a >> tl.where(outside, BITS - 1, b)
