"""Depthwise convolution, and what a squeeze-and-excite after it needs of the result.

Each thread holds TILE_H × TILE_W neighbouring output pixels of a few channels in registers: a pixel of the input is converted
once a row of taps, and read from L1 far less often than there are taps.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005 - Triton compiles no iterable unpacking
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.fill import filling
from torchsmith.backends.cuda.kernels.functions import whole


@triton.jit
def number(x, ZERO: tl.constexpr):
    """What was loaded, in float32; ZERO stands for 0."""
    return whole(x, ZERO) if x.dtype.is_int() else x.to(tl.float32)


@triton.jit
def depthwise(
    x, w, bias, y, squeeze, partial,
    C, H, W, OH, OW, S,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    EPILOGUE: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    BLOCK_C: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, GROUPS_H: tl.constexpr, GROUPS_W: tl.constexpr,
    BLOCK_S: tl.constexpr, EARLY: tl.constexpr, ZERO: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of pixels of one picture, BLOCK_C channels. Grid: (pictures * tiles * blocks of channels).

    w: (KH * KW, C). bias: (C,) or None. squeeze: (S, C) or None: the first layer of a squeeze-and-excite; it is linear, so each
    block gives its pixels' and channels' share of it, as sums over pixels: partial is (pictures, tiles * blocks of channels, S).
    ZERO: which number of x stands for 0. EPILOGUE gives what y takes, and with `squeeze` what is summed besides.
    BLOCK_S: how many of its rows are multiplied at a time. EARLY: load all taps, and the rows if they are at most
    BLOCK_S, before waiting for the input.
    """
    channel_blocks, tiles_w = tl.cdiv(C, BLOCK_C), tl.cdiv(OW, GROUPS_W * TILE_W)
    blocks = channel_blocks * tiles_w * tl.cdiv(OH, GROUPS_H * TILE_H)  # of one picture
    batch, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tile = block // channel_blocks
    group = tl.arange(0, GROUPS_H * GROUPS_W)
    top = ((tile // tiles_w) * GROUPS_H + group // GROUPS_W) * TILE_H
    left = ((tile % tiles_w) * GROUPS_W + group % GROUPS_W) * TILE_W
    channels = (block % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = (channels < C)[None, :]
    in_top, in_left = top * STRIDE_H - PAD_H, left * STRIDE_W - PAD_W
    # whole tiles of pointers: each thread loads the taps of its own channels, in the layout of its pixels
    wide = tl.broadcast_to(channels[None, :], (GROUPS_H * GROUPS_W, BLOCK_C))
    first_tap = w + wide
    first = x + batch.to(tl.int64) * x_n + ((in_top * x_h + in_left * x_w)[:, None] + channels[None, :] * x_c)
    outside = filling(wide, ZERO, x.dtype.element_ty)
    zero = tl.zeros((GROUPS_H * GROUPS_W, BLOCK_C), tl.float32)
    start = zero
    if bias is not None:
        start = tl.load(bias + wide, mask=channel_mask, other=0.0).to(tl.float32)
    early = ()
    if EARLY:
        for t in tl.static_range(KH * KW):
            early = early + (tl.load(first_tap + t * C, mask=channel_mask, other=0.0),)
    if squeeze is not None:
        units = tl.arange(0, BLOCK_S)
        factors = squeeze + units[:, None] * C + channels[None, :]
        if EARLY and S <= BLOCK_S:
            early_factors = tl.load(factors, mask=(units < S)[:, None] & channel_mask, other=0.0)
    acc = ()
    for _ in tl.static_range(TILE_H * TILE_W):
        acc = acc + (start,)
    wait_for_inputs(PDL)
    let_next_start(PDL)
    for r in tl.static_range((TILE_H - 1) * STRIDE_H + (KH - 1) * DILATION_H + 1):
        row_mask = ((in_top + r >= 0) & (in_top + r < H))[:, None] & channel_mask
        row = ()
        for q in tl.static_range((TILE_W - 1) * STRIDE_W + (KW - 1) * DILATION_W + 1):
            mask = row_mask & ((in_left + q >= 0) & (in_left + q < W))[:, None]
            row = row + (number(tl.load(first + (r * x_h + q * x_w), mask=mask, other=outside), ZERO),)
        sums = ()
        for i in tl.static_range(TILE_H):
            taps = ()  # those that the output row i has over this row
            for h in tl.static_range(KH):
                if i * STRIDE_H + h * DILATION_H == r:
                    for k in tl.static_range(KW):
                        if EARLY:
                            taps = taps + (early[h * KW + k].to(tl.float32),)
                        else:
                            tap = tl.load(first_tap + (h * KW + k) * C, mask=channel_mask, other=0.0)
                            taps = taps + (tap.to(tl.float32),)
            for j in tl.static_range(TILE_W):
                sum = acc[i * TILE_W + j]
                for h in tl.static_range(KH):
                    if i * STRIDE_H + h * DILATION_H == r:
                        for k in tl.static_range(KW):
                            sum += row[j * STRIDE_W + k * DILATION_W] * taps[k]
                sums = sums + (sum,)
        acc = sums
    place = y + batch.to(tl.int64) * y_n + ((top * y_h + left * y_w)[:, None] + channels[None, :] * y_c)
    total = zero
    for i in tl.static_range(TILE_H):
        for j in tl.static_range(TILE_W):
            mask = ((top + i < OH) & (left + j < OW))[:, None] & channel_mask
            pixels = ((top + i) * OW + left + j)[:, None]
            value, summand = EPILOGUE(
                acc[i * TILE_W + j], batch, pixels, channels[None, :], mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3
            )
            tl.store(place + (i * y_h + j * y_w), value.to(y.dtype.element_ty), mask=mask)
            if squeeze is not None:
                total += tl.where(mask, summand, 0.0)
    if squeeze is not None:
        share = tl.sum(total, 0)[None, :]
        to = partial + tl.program_id(0).to(tl.int64) * S
        if EARLY and S <= BLOCK_S:
            tl.store(to + units, tl.sum(early_factors.to(tl.float32) * share, 1), mask=units < S)
        else:
            for s in range(0, S, BLOCK_S):
                some = tl.load(factors + s * C, mask=(s + units < S)[:, None] & channel_mask, other=0.0)
                tl.store(to + s + units, tl.sum(some.to(tl.float32) * share, 1), mask=s + units < S)


def twin(
    x: Tensor, w: Tensor, bias: Tensor | None, epilogue: Callable[[Tensor], Tensor],
    stride: Sequence[int], padding: Sequence[Sequence[int]], dilation: Sequence[int], squeeze: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The same in plain PyTorch. w: (C, 1, KH, KW), squeeze: (S, C). Gives y, and (N, S): the partials of a picture added up."""
    wide = torch.nn.functional.pad(x.float(), [p for pair in reversed(padding) for p in pair])
    given = None if bias is None else bias.float()
    conv = torch.nn.functional.conv2d(wide, w.float(), given, list(stride), 0, list(dilation), w.shape[0])
    y = epilogue(conv)
    return y.to(x.dtype), None if squeeze is None else y.sum((2, 3)) @ squeeze.float().T
