"""Pooling over windows of up to three dimensions: y[n, o, c] = epilogue(greatest or mean of x[n, window of o, c])."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, maximum, wait_for_inputs
from torchsmith.backends.cuda.kernels.fill import filling
from torchsmith.backends.cuda.kernels.functions import whole


@triton.jit
def window(o, size, out_size, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The first place of an output element's window in one dimension, and the one after its last; both may be in the padding."""
    if ADAPTIVE:
        return o * size // out_size, ((o + 1) * size + out_size - 1) // out_size
    else:
        start = o * STRIDE - PAD
        return start, tl.minimum(start + K, size + PAD)


@triton.jit
def tap(x, acc, place, inside, MAX: tl.constexpr):
    if not MAX:
        return acc + tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    elif x.dtype.element_ty == tl.int8:  # nothing is less than -128, which every window has room for
        return tl.maximum(acc, whole(tl.load(x + place, mask=inside, other=filling(place, -128, tl.int8)), 0.0))
    else:
        return maximum(acc, tl.load(x + place, mask=inside, other=float("-inf")).to(tl.float32))


@triton.jit
def pool(
    x, y, P, C, D, H, W, OD, OH, OW,
    x_n, x_c, x_d, x_h, x_w, y_n, y_c, y_d, y_h, y_w,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    MAX: tl.constexpr, ADAPTIVE: tl.constexpr, COUNT_PAD: tl.constexpr, DIVISOR: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    EPILOGUE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_P of the P windows (pictures and places), BLOCK_C channels. Grid: blocks of P * blocks of C.

    K*: the window (ADAPTIVE: the widest); S*: strides; P*: padding before; L*: dilation. DIVISOR: 0 for the window's own count.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0)
    rows = block // blocks_c * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    cols = block % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    row_mask, col_mask = rows < P, cols < C
    mask = row_mask & col_mask
    ow, oh, od, n = rows % OW, rows // OW % OH, rows // (OW * OH) % OD, rows // (OW * OH * OD)
    d0, d1 = window(od, D, OD, KD, SD, PD, ADAPTIVE)
    h0, h1 = window(oh, H, OH, KH, SH, PH, ADAPTIVE)
    w0, w1 = window(ow, W, OW, KW, SW, PW, ADAPTIVE)
    base = n * x_n + cols * x_c
    wait_for_inputs(PDL)
    acc = tl.full((BLOCK_P, BLOCK_C), float("-inf") if MAX else 0.0, tl.float32)
    for kd in tl.static_range(KD):
        d = d0 + kd * LD
        in_d = row_mask & (d >= 0) & (d < D) & (d < d1 if ADAPTIVE else True)
        for kh in tl.static_range(KH):
            h = h0 + kh * LH
            in_h = in_d & (h >= 0) & (h < H) & (h < h1 if ADAPTIVE else True)
            for kw in tl.static_range(KW):
                w = w0 + kw * LW
                inside = in_h & (w >= 0) & (w < W) & (w < w1 if ADAPTIVE else True) & col_mask
                acc = tap(x, acc, base + d * x_d + h * x_h + w * x_w, inside, MAX)
    let_next_start(PDL)
    if not MAX:
        if DIVISOR:
            acc = acc * (1.0 / DIVISOR)
        else:
            if not COUNT_PAD:
                d0, h0, w0 = tl.maximum(d0, 0), tl.maximum(h0, 0), tl.maximum(w0, 0)
                d1, h1, w1 = tl.minimum(d1, D), tl.minimum(h1, H), tl.minimum(w1, W)
            acc = acc / ((d1 - d0) * (h1 - h0) * (w1 - w0)).to(tl.float32)
    z = EPILOGUE(acc, rows, cols, row_mask, col_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    place = n * y_n + cols * y_c + od * y_d + oh * y_h + ow * y_w
    tl.store(y + place, z.to(y.dtype.element_ty), mask=mask)


def twin(x: Tensor, pooling: Callable[[Tensor], Tensor], epilogue: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """The same in plain PyTorch. x: (N, C, *spatial); pooling: PyTorch's own, of float32; the result is of `dtype`."""
    return epilogue(pooling(x.float())).to(dtype)
