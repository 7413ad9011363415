"""Depthwise convolution of many pictures: a thread goes down a strip of each, and does as little as it can beside multiplying.

A pixel of the input is loaded and converted once for all rows of taps that meet it: only the rows of output that it
reaches are held. What is known to be inside the picture is loaded without a mask, and taps known to be outside are left
out: where one tile is the whole picture, nothing is masked.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,assignment,var-annotated"
# ruff: noqa: RUF005 - Triton compiles no iterable unpacking
from __future__ import annotations

import triton
import triton.language as tl

from torchsmith.backends.cuda.kernels.common import let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.depthwise import number
from torchsmith.backends.cuda.kernels.fill import filling
from torchsmith.backends.cuda.steps import Hook


@triton.jit
def load_row(
    first, in_left, H, W, row, channel_mask, x_h, x_w,
    R: tl.constexpr, COLUMNS: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    FREE_H: tl.constexpr, FREE_W: tl.constexpr, ONE_H: tl.constexpr, ONE_W: tl.constexpr, outside,
):  # fmt: skip
    """The row R of a tile's input, as it is stored, and `outside` beside the picture; empty where it is outside of every one."""
    found = ()
    if (R >= PAD_H and R < FREE_H) or not ONE_H:
        for q in tl.static_range(COLUMNS):
            if (q >= PAD_W and q < FREE_W) or not ONE_W:
                mask = channel_mask
                if not (R >= PAD_H and R < FREE_H):
                    mask = mask & ((row >= 0) & (row < H))[:, None]
                if not (q >= PAD_W and q < FREE_W):
                    mask = mask & ((in_left + q >= 0) & (in_left + q < W))[:, None]
                found = found + (tl.load(first + (R * x_h + q * x_w), mask=mask, other=outside),)
    return found


def multiply_add(tile: int, taps: int, stride: int, dilation: int, first: int, last: int) -> Hook:
    """(held, row, taps): held with the products of a row of pixels and a row of taps added, for `tile` neighbouring pixels.

    first, last: the columns of the row that there are. All products of a pixel are one operation, for Triton's passes take
    time that grows with the square of the number of operations.
    """
    plain, fused = [], []
    for j in range(tile):
        used = [k for k in range(taps) if first <= j * stride + k * dilation < last]
        n, pixels = len(used), [f"row[{j * stride + k * dilation - first}]" for k in used]
        factors = [f"taps[{k}]" for k in used]
        plain.append(f"s{j} = " + " + ".join([f"held[{j}]", *(f"{p} * {t}" for p, t in zip(pixels, factors, strict=True))]))
        text = " ".join(f"fma.rn.f32 $0, ${2 + i}, ${2 + n + i}, ${1 if i == 0 else 0};" for i in range(n))
        call = f'tl.inline_asm_elementwise("{text}", "{",".join(["=&f", *["f"] * (2 * n + 1)])}", '
        call += f"[{', '.join([f'held[{j}]', *pixels, *factors])}], dtype=tl.float32, is_pure=True, pack=1)"
        fused.append(f"s{j} = {call if n else f'held[{j}]'}")
    sums = "".join(f"s{j}, " for j in range(tile))
    lines = ["def multiply_add(held, row, taps):", "    if INTERPRETED:", *(f"        {line}" for line in plain), "    else:"]
    return Hook("multiply_add", "\n".join([*lines, *(f"        {line}" for line in fused), f"    return ({sums})", ""]))


@triton.jit
def depthwise_strips(
    x, w, bias, y, squeeze, partial,
    C, H, W, OH, OW, S,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    EPILOGUE: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    FREE_H: tl.constexpr, FREE_W: tl.constexpr, ONE_H: tl.constexpr, ONE_W: tl.constexpr,
    FULL_H: tl.constexpr, FULL_W: tl.constexpr, FULL_C: tl.constexpr,
    BLOCK_C: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, GROUPS_H: tl.constexpr, GROUPS_W: tl.constexpr,
    BLOCK_S: tl.constexpr, MULTIPLY_ADD: tl.constexpr, ZERO: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As `depthwise`, but EARLY. FREE_H: rows of a tile's input before this one are above every picture's lower edge; ONE_H:
    a picture has one tile of rows; FULL_H: rows of a tile's output before this one are in every picture; and so for columns.
    MULTIPLY_ADD: of `multiply_add`. FULL_C: whether the channels are a multiple of BLOCK_C.
    """
    channel_blocks, tiles_w = tl.cdiv(C, BLOCK_C), tl.cdiv(OW, GROUPS_W * TILE_W)
    blocks = channel_blocks * tiles_w * tl.cdiv(OH, GROUPS_H * TILE_H)  # of one picture
    batch, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    tile = block // channel_blocks
    group = tl.arange(0, GROUPS_H * GROUPS_W)
    top = ((tile // tiles_w) * GROUPS_H + group // GROUPS_W) * TILE_H
    left = ((tile % tiles_w) * GROUPS_W + group % GROUPS_W) * TILE_W
    channels = (block % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = (tl.full((BLOCK_C,), True, tl.int1) if FULL_C else channels < C)[None, :]
    in_top, in_left = top * STRIDE_H - PAD_H, left * STRIDE_W - PAD_W
    # whole tiles of pointers: each thread loads the taps of its own channels, in the layout of its pixels
    wide = tl.broadcast_to(channels[None, :], (GROUPS_H * GROUPS_W, BLOCK_C))
    first = x + batch.to(tl.int64) * x_n + ((in_top * x_h + in_left * x_w)[:, None] + channels[None, :] * x_c)
    place = y + batch.to(tl.int64) * y_n + ((top * y_h + left * y_w)[:, None] + channels[None, :] * y_c)
    outside = filling(wide, ZERO, x.dtype.element_ty)
    start = tl.zeros((GROUPS_H * GROUPS_W, BLOCK_C), tl.float32)
    total = start
    if bias is not None:
        start = tl.load(bias + wide, mask=channel_mask, other=0.0).to(tl.float32)
    taps = ()
    for t in tl.static_range(KH * KW):
        taps = taps + (tl.load(w + wide + t * C, mask=channel_mask, other=0.0).to(tl.float32),)
    acc = ()
    for _ in tl.static_range(TILE_H * TILE_W):
        acc = acc + (start,)
    wait_for_inputs(PDL)
    let_next_start(PDL)
    ROWS: tl.constexpr = (TILE_H - 1) * STRIDE_H + (KH - 1) * DILATION_H + 1
    COLUMNS: tl.constexpr = (TILE_W - 1) * STRIDE_W + (KW - 1) * DILATION_W + 1
    SKIPPED: tl.constexpr = PAD_W if ONE_W else 0  # columns that no row has
    LAST: tl.constexpr = FREE_W if ONE_W and FREE_W < COLUMNS else COLUMNS
    coming = load_row(
        first, in_left, H, W, in_top, channel_mask, x_h, x_w, 0, COLUMNS, PAD_H, PAD_W, FREE_H, FREE_W, ONE_H, ONE_W, outside
    )  # fmt: skip
    for r in tl.static_range(ROWS):
        raw = coming
        if r + 1 < ROWS:  # one row ahead: stores keep the compiler from moving loads up
            coming = load_row(
                first, in_left, H, W, in_top + (r + 1), channel_mask, x_h, x_w, r + 1, COLUMNS, PAD_H, PAD_W, FREE_H, FREE_W,
                ONE_H, ONE_W, outside,
            )  # fmt: skip
        if (r >= PAD_H and r < FREE_H) or not ONE_H:
            row = ()
            for value in tl.static_range(LAST - SKIPPED):
                row = row + (number(raw[value], ZERO),)
            sums = ()
            for i in tl.static_range(TILE_H):
                held = ()
                for j in tl.static_range(TILE_W):
                    held = held + (acc[i * TILE_W + j],)
                if r >= i * STRIDE_H and r <= i * STRIDE_H + (KH - 1) * DILATION_H and (r - i * STRIDE_H) % DILATION_H == 0:
                    used = ()
                    for k in tl.static_range(KW):
                        used = used + (taps[(r - i * STRIDE_H) // DILATION_H * KW + k],)
                    sums = sums + MULTIPLY_ADD(held, row, used)
                else:
                    sums = sums + held
            acc = sums
        for i in tl.static_range(TILE_H):
            if i * STRIDE_H + (KH - 1) * DILATION_H == r:  # the row i has all of its taps
                for j in tl.static_range(TILE_W):
                    mask = channel_mask
                    if i >= FULL_H:
                        mask = mask & (top + i < OH)[:, None]
                    if j >= FULL_W:
                        mask = mask & (left + j < OW)[:, None]
                    pixels = ((top + i) * OW + left + j)[:, None]
                    value, summand = EPILOGUE(
                        acc[i * TILE_W + j], batch, pixels, channels[None, :], mask,
                        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
                    )  # fmt: skip
                    tl.store(place + (i * y_h + j * y_w), value.to(y.dtype.element_ty), mask=mask)
                    if squeeze is not None:
                        total += summand if FULL_C and i < FULL_H and j < FULL_W else tl.where(mask, summand, 0.0)
    if squeeze is not None:
        share = tl.sum(total, 0)[None, :]
        to = partial + tl.program_id(0).to(tl.int64) * S
        units = tl.arange(0, BLOCK_S)
        factors = squeeze + units[:, None] * C + channels[None, :]
        for s in tl.static_range(0, S, BLOCK_S):
            some = tl.load(factors + s * C, mask=(s + units < S)[:, None] & channel_mask, other=0.0)
            tl.store(to + s + units, tl.sum(some.to(tl.float32) * share, 1), mask=s + units < S)
