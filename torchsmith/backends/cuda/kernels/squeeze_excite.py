"""Squeeze-and-excite: a gate per picture and channel from the channels' means, through two small layers.

The first layer is linear in the pixels: `squeeze` (and `depthwise`, which has the pixels in registers) gives shares of it,
and `excite` adds them up, and makes its slice of the gate.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import dot, let_next_start, wait_for_inputs


@triton.jit
def squeeze(
    x, w, partial, C, W, PIXELS, SPLITS, S, x_n, x_c, x_h, x_w,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The first layer's share of some pixels and channels. Grid: (pictures * SPLITS * blocks of channels).

    w: (S, C). partial: (pictures, SPLITS * blocks of channels, S), of sums over pixels, float32.
    """
    channel_blocks = tl.cdiv(C, BLOCK_C)
    blocks = channel_blocks * SPLITS
    batch, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    channels = (block % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_mask = (channels < C)[None, :]
    source = x + batch.to(tl.int64) * x_n
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    wait_for_inputs(PDL)
    let_next_start(PDL)
    for p in range((block // channel_blocks) * BLOCK_P, PIXELS, SPLITS * BLOCK_P):
        pixels = p + tl.arange(0, BLOCK_P)
        place = ((pixels // W) * x_h + (pixels % W) * x_w)[:, None] + channels[None, :] * x_c
        total += tl.load(source + place, mask=(pixels < PIXELS)[:, None] & channel_mask, other=0.0).to(tl.float32)
    share = tl.sum(total, 0)[None, :]
    to = partial + tl.program_id(0).to(tl.int64) * S
    for s in range(0, S, BLOCK_S):
        units = s + tl.arange(0, BLOCK_S)
        row_of = units[:, None] * C + channels[None, :]
        factors = tl.load(w + row_of, mask=(units < S)[:, None] & channel_mask, other=0.0).to(tl.float32)
        tl.store(to + units, tl.sum(factors * share, 1), mask=units < S)


@triton.jit
def excite(
    partial, bias, w, w_bias, gate, N, C, R, S, PIXELS, g_n, g_c,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """gate = GATE(w @ ACTIVATION(bias + the sum of partial / PIXELS) + w_bias). Grid: (blocks of channels, blocks of pictures).

    partial: (N, R, S). bias: (S,), w: (C, S), w_bias: (C,); biases may be None. BLOCK_S covers S.
    """
    images = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    units, rows = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_R)
    image_mask, channel_mask, unit_mask = images < N, channels < C, units < S
    # the weights come while the kernel before still runs
    factors = tl.load(w + channels[:, None] * S + units[None, :], mask=channel_mask[:, None] & unit_mask[None, :], other=0.0)
    hidden = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
    if bias is not None:
        hidden += tl.load(bias + units, mask=unit_mask, other=0.0).to(tl.float32)[None, :]
    result = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    if w_bias is not None:
        result += tl.load(w_bias + channels, mask=channel_mask, other=0.0).to(tl.float32)[None, :]
    wait_for_inputs(PDL)
    let_next_start(PDL)
    sums = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
    if BLOCK_N >= 16:  # every thread has units of its own: nothing is added across threads
        own = partial + images[:, None] * (R * S) + units[None, :]
        for r in range(0, R, 8):
            for i in tl.static_range(8):
                sums += tl.load(own + (r + i) * S, mask=image_mask[:, None] & unit_mask[None, :] & (r + i < R), other=0.0)
    else:
        for r in range(0, R, BLOCK_R):
            place = (images[:, None, None] * R + (r + rows)[None, :, None]) * S + units[None, None, :]
            mask = image_mask[:, None, None] & (r + rows < R)[None, :, None] & unit_mask[None, None, :]
            sums += tl.sum(tl.load(partial + place, mask=mask, other=0.0), 1)
    mask = image_mask[:, None] & unit_mask[None, :]
    hidden = ACTIVATION(
        hidden + sums / PIXELS, images[:, None], units[None, :], mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3
    )
    hidden = tl.where(mask, hidden, 0.0)  # what an activation makes of the padding must not meet the weights' zeros
    if BLOCK_N >= 16:  # the hidden layer is rounded to the weights' dtype
        result = dot(hidden.to(factors.dtype), tl.trans(factors), result, "ieee")
    else:
        result += tl.sum(factors.to(tl.float32)[None, :, :] * hidden[:, None, :], 2)
    mask = image_mask[:, None] & channel_mask[None, :]
    result = GATE(result, images[:, None], channels[None, :], mask, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    tl.store(gate + images[:, None] * g_n + channels[None, :] * g_c, result.to(gate.dtype.element_ty), mask=mask)


def twin(
    x: Tensor, first: Tensor, bias: Tensor | None, activation: Callable[[Tensor], Tensor],
    second: Tensor, second_bias: Tensor | None, gate: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Both kernels in plain PyTorch. x: (N, C, H, W), first: (S, C), second: (C, S); the gate is (N, C) of x's dtype."""
    hidden = x.float().mean((2, 3)) @ first.float().T + (0 if bias is None else bias.float())
    return gate(activation(hidden) @ second.float().T + (0 if second_bias is None else second_bias.float())).to(x.dtype)
