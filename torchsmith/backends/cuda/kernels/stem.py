"""Convolution of a picture in any layout, element by element: the first layer, with few channels, of what the user gives.

Taps and channels are one dimension of the sum, so that three channels do not fill a block of sixteen with zeros. The tile of the
picture is loaded with pixels innermost: neighbouring threads read neighbouring pixels.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from torchsmith.backends.cuda.kernels.common import dot, let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.convolution import twin


@triton.jit
def stem(
    x, w, y, M, N, H, W, OH, OW,
    x_image, x_channel, x_row, x_pixel, y_image, y_channel, y_row, y_pixel,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    C: tl.constexpr, R: tl.constexpr, S: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PADDED: tl.constexpr,
    PROLOGUE: tl.constexpr, ZERO_STAYS: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block of y. Grid: (blocks of M * blocks of N, groups).

    N, C: output and input channels of a group. w: (groups * N, C * R * S up to a multiple of BLOCK_K, zero beyond), its columns
    counting (channel, row, column) where CHANNELS_FIRST, else (row, column, channel). y_image, y_row: None where all pixels of y
    lie in one sweep, y_pixel apart. PROLOGUE: of what is loaded; ZERO_STAYS: whether it gives zero for zero, as padding needs.
    """
    K: tl.constexpr = C * R * S
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    blocks_n = tl.cdiv(N, BLOCK_N)
    block, group = tl.program_id(0), tl.program_id(1)
    rows = (block // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    local = (block % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    row_mask, col_mask = rows < M, local < N
    cols = group * N + local
    image = rows // (OH * OW)
    out_h, out_w = rows % (OH * OW) // OW, rows % OW
    h, v = out_h * STRIDE_H - PAD_H, out_w * STRIDE_W - PAD_W
    x_tile = x + (image * x_image + group * C * x_channel + h * x_row + v * x_pixel)[None, :]
    w_tile = w + cols[None, :] * (STEPS * BLOCK_K) + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    wait_for_inputs(PDL)
    for step in range(0, STEPS):
        k = step * BLOCK_K + ks
        if CHANNELS_FIRST:
            channel, down, right = k // (R * S), k % (R * S) // S * DILATION_H, k % S * DILATION_W
        else:
            channel, down, right = k % C, k // C // S * DILATION_H, k // C % S * DILATION_W
        k_mask = (k < K)[:, None]
        mask = row_mask[None, :] & k_mask
        if PADDED:
            mask = mask & ((h[None, :] + down[:, None]).to(tl.uint32) < H) & ((v[None, :] + right[:, None]).to(tl.uint32) < W)
        a = tl.load(x_tile + (channel * x_channel + down * x_row + right * x_pixel)[:, None], mask=mask, other=0)
        if PROLOGUE is not None:
            a = PROLOGUE(
                a, image[None, :], (group * C + channel)[:, None], h[None, :] + down[:, None], v[None, :] + right[:, None],
                row_mask[None, :], k_mask, mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            )  # fmt: skip
            if not ZERO_STAYS:
                a = tl.where(mask, a, 0.0)
        b = tl.load(w_tile + step * BLOCK_K, mask=col_mask[None, :], other=0.0)
        acc = dot(tl.trans(a.to(w.dtype.element_ty)), b, acc, PRECISION)
    let_next_start(PDL)
    acc = EPILOGUE(
        acc, rows[:, None], cols[None, :], row_mask[:, None], col_mask[None, :],
        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    )  # fmt: skip
    if y_image is None:
        place = rows[:, None] * y_pixel + cols[None, :] * y_channel
    else:
        place = (image * y_image + out_h * y_row + out_w * y_pixel)[:, None] + cols[None, :] * y_channel
    tl.store(y + place, acc.to(y.dtype.element_ty), mask=row_mask[:, None] & col_mask[None, :])


__all__ = ["stem", "twin"]
