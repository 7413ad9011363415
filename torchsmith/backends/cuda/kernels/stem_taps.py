"""Convolution of a large picture with few channels, channels outermost: every tap is one coalesced load over the pixels.

What a thread loads, whether a tap can leave the picture, and where its elements are relative to the pixel's are constants of the
code, which leaves little but the loads themselves. Where strides allow, neighbouring columns are loaded together: two for each
thread, and four for each pixel in two threads, which then hold what lies together in the product's operand.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,assignment"
from __future__ import annotations

import triton
import triton.language as tl

from torchsmith.backends.cuda.kernels.common import dot, let_next_start, wait_for_inputs
from torchsmith.backends.cuda.kernels.convolution import twin


@triton.jit
def tap(
    origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    INDEX: tl.constexpr, C: tl.constexpr, R: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, EVEN: tl.constexpr,
    PROLOGUE: tl.constexpr, ZERO_STAYS: tl.constexpr,
):  # fmt: skip
    """Every pixel's element under tap INDEX, or the WIDE elements from there on. origin: where tap 0's are.

    With WIDE above 1 either both or none of columns 0 and 1, 2 and 3 of a tap are in the picture.
    """
    channel: tl.constexpr = INDEX // (R * T)
    row: tl.constexpr = INDEX // T % R
    column: tl.constexpr = INDEX % T * WIDE
    if channel >= C:
        return tl.zeros(origin.shape, tl.float32)
    else:
        place = origin + (channel * x_channel + row * DILATION_H * x_row + column * DILATION_W * x_pixel)
        down, right = h + row * DILATION_H, v + column * DILATION_W
        edge_h: tl.constexpr = row < TOP or row >= BOTTOM
        edge_w: tl.constexpr = column < LEFT or column >= RIGHT
        mask = row_mask
        if edge_h:
            mask = mask & (down.to(tl.uint32) < H)
        if edge_w:
            mask = mask & ((right + lanes // 2 * 2).to(tl.uint32) < W)
        a = tl.load(place) if EVEN and not edge_h and not edge_w else tl.load(place, mask=mask, other=0)
        if PROLOGUE is not None:
            a = PROLOGUE(
                a, image, channel, down, right + lanes, row_mask, True, mask,
                e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            )  # fmt: skip
            if not ZERO_STAYS:
                a = tl.where(mask, a, 0.0)
        return a.to(tl.float32)


@triton.jit
def taps(
    origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr,
    C: tl.constexpr, R: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, EVEN: tl.constexpr,
    PROLOGUE: tl.constexpr, ZERO_STAYS: tl.constexpr,
):  # fmt: skip
    """(pixels, WIDE * COUNT): all first elements under the taps FIRST, FIRST + STEP, …, then all second ones, and so on.

    Joined from halves, so that each thread keeps the elements of its own pixels.
    """
    if COUNT == 1:
        return tap(
            origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            FIRST, C, R, T, WIDE, DILATION_H, DILATION_W, TOP, BOTTOM, LEFT, RIGHT, EVEN, PROLOGUE, ZERO_STAYS,
        )  # fmt: skip
    else:
        even = taps(
            origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            FIRST, 2 * STEP, COUNT // 2,
            C, R, T, WIDE, DILATION_H, DILATION_W, TOP, BOTTOM, LEFT, RIGHT, EVEN, PROLOGUE, ZERO_STAYS,
        )  # fmt: skip
        odd = taps(
            origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
            FIRST + STEP, 2 * STEP, COUNT // 2,
            C, R, T, WIDE, DILATION_H, DILATION_W, TOP, BOTTOM, LEFT, RIGHT, EVEN, PROLOGUE, ZERO_STAYS,
        )  # fmt: skip
        return tl.reshape(tl.join(even, odd), (even.shape[0], WIDE * COUNT))


@triton.jit
def columns(w, cols, col_mask, START: tl.constexpr, SIZE: tl.constexpr, K: tl.constexpr):
    """Columns START to START + SIZE of the rows `cols` of w."""
    return tl.load(w + cols[:, None] * K + (START + tl.arange(0, SIZE))[None, :], mask=col_mask[:, None], other=0.0)


@triton.jit
def add_block(
    acc, b, origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    START: tl.constexpr, SIZE: tl.constexpr, SWAPPED: tl.constexpr, PRECISION: tl.constexpr,
    C: tl.constexpr, R: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, EVEN: tl.constexpr,
    PROLOGUE: tl.constexpr, ZERO_STAYS: tl.constexpr,
):  # fmt: skip
    """acc and the products with b, columns START to START + SIZE of w: (pixels, filters), the other way round where SWAPPED."""
    a = taps(
        origin, image, h, v, lanes, row_mask, H, W, x_channel, x_row, x_pixel,
        e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
        START // WIDE, 1, SIZE // WIDE,
        C, R, T, WIDE, DILATION_H, DILATION_W, TOP, BOTTOM, LEFT, RIGHT, EVEN, PROLOGUE, ZERO_STAYS,
    )  # fmt: skip
    # rounded here, not sooner: Triton 3.8 fails on a transposed operand that comes straight from a reshape
    a = a.to(b.dtype)
    if SWAPPED:
        return dot(b, tl.trans(a), acc, PRECISION)
    else:
        return dot(a, tl.trans(b), acc, PRECISION)


@triton.jit
def stem_taps(
    x, w, y, M, N, H, W, OH, OW,
    x_image, x_channel, x_row, x_pixel, y_row, y_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    C: tl.constexpr, R: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr, K: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, EVEN: tl.constexpr,
    PROLOGUE: tl.constexpr, ZERO_STAYS: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, LAST_K: tl.constexpr,
    TILES: tl.constexpr, SWAPPED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """TILES blocks of y, one after the other. Grid: (M / (TILES * BLOCK_M) * blocks of N), rounded up.

    T: taps a row, each of WIDE columns. w: (N, K), its columns in blocks of BLOCK_K, the last one of LAST_K; in each block as
    `taps` gives them, taps counting (channel, row, column), zero beyond the last. Taps of rows below TOP or from BOTTOM on, or of
    columns below LEFT or from RIGHT on, may lie outside the picture. EVEN: whether BLOCK_M divides M. PROLOGUE: of what is loaded;
    ZERO_STAYS: whether it gives zero for zero, as padding needs. SWAPPED: whether filters are the product's rows, so that the
    gathered elements are the operand that is read from shared memory once, whatever the number of filters.
    """
    blocks_n = tl.cdiv(N, BLOCK_N)
    cols = (tl.program_id(0) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < N
    weights = ()
    for start in tl.static_range(0, K, BLOCK_K):
        tile = columns(w, cols, col_mask, start, BLOCK_K if start + BLOCK_K <= K else LAST_K, K)
        weights = weights + (tile,)  # noqa: RUF005 (Triton has no unpacking)
    wait_for_inputs(PDL)
    first = (tl.program_id(0) // blocks_n) * (TILES * BLOCK_M)
    for index in range(0, TILES):
        rows = first + index * BLOCK_M + tl.arange(0, BLOCK_M)
        row_mask = rows < M
        image = rows // (OH * OW)
        h, v = rows % (OH * OW) // OW * STRIDE_H - PAD_H, rows % OW * STRIDE_W - PAD_W
        place = image * x_image + h * x_row + v * x_pixel
        if WIDE > 1:
            lanes = tl.arange(0, WIDE)[None, :]
            origin = (x + place[:, None]) + lanes
            images, h, v, inside = image[:, None], h[:, None], v[:, None], row_mask[:, None]
        else:
            lanes, origin, images, inside = 0, x + place, image, row_mask
        acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAPPED else (BLOCK_M, BLOCK_N), tl.float32)
        for start in tl.static_range(0, K, BLOCK_K):
            acc = add_block(
                acc, weights[start // BLOCK_K], origin, images, h, v, lanes, inside, H, W, x_channel, x_row, x_pixel,
                e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
                start, BLOCK_K if start + BLOCK_K <= K else LAST_K, SWAPPED, PRECISION,
                C, R, T, WIDE, DILATION_H, DILATION_W, TOP, BOTTOM, LEFT, RIGHT, EVEN, PROLOGUE, ZERO_STAYS,
            )  # fmt: skip
        if TILES == 1:
            let_next_start(PDL)
        if SWAPPED:
            acc = tl.trans(acc)
        acc = EPILOGUE(
            acc, rows[:, None], cols[None, :], row_mask[:, None], col_mask[None, :],
            e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
        )  # fmt: skip
        tl.store(
            y + rows[:, None] * y_row + cols[None, :] * y_col,
            acc.to(y.dtype.element_ty),
            mask=row_mask[:, None] & col_mask[None, :],
        )
    if TILES > 1:
        let_next_start(PDL)


__all__ = ["stem_taps", "twin"]
