"""Attention without a matrix of scores in memory: softmax(scale * q @ k.T + mask) @ v, by blocks of keys.

FlashAttention (arXiv 2205.14135) with every operand as a strided view. Scores, softmax and sums are float32; exponentials
are powers of two.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchsmith.backends.cuda.kernels.common import dot, exp2, let_next_start, wait_for_inputs


@triton.jit
def attention(
    q, k, v, mask, y, L, S,
    q_row, q_col, k_row, k_col, v_row, v_col, mask_row, mask_col,
    e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3,
    OFFSETS: tl.constexpr, PLACE: tl.constexpr, EPILOGUE: tl.constexpr,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, EVEN: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
    E: tl.constexpr, V: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK_M queries of one head. Grid: (heads * blocks of queries).

    OFFSETS: of the batch's number to the offsets of q, k, v and the mask. MASK: "", "bool" or "add". SCALE: with log2(e) in
    it. EVEN: whether S is a multiple of BLOCK_N. TAIL: keys of a smaller block after the whole ones, or 0 where the last of the
    blocks reaches past S. WIDEN: make halves of values that are float8; else exponentials are rounded to it.
    """
    blocks = tl.cdiv(L, BLOCK_M)
    batch = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    features = tl.arange(0, BLOCK_E)
    cols = tl.arange(0, BLOCK_V)
    q_batch, k_batch, v_batch, mask_batch = OFFSETS(batch, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    q_tile = q + q_batch + rows[:, None] * q_row + features[None, :] * q_col
    k_first = k + k_batch + features[:, None] * k_col
    v_first = v + v_batch + cols[None, :] * v_col
    row_mask, col_mask = (rows < L)[:, None], (cols < V)[None, :]
    greatest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    end = S
    if CAUSAL:
        end = min(S, first + BLOCK_M)
    elif TAIL > 0:
        end = S // BLOCK_N * BLOCK_N
    wait_for_inputs(PDL)
    query = tl.load(q_tile, mask=row_mask & (features < E)[None, :], other=0.0)
    for start in range(0, end, BLOCK_N):
        greatest, total, acc = attend(
            query, k_first, v_first, mask, mask_batch, start, S, rows, row_mask, features, col_mask, greatest, total, acc,
            k_row, v_row, mask_row, mask_col, SCALE, CAUSAL, MASK, EVEN or TAIL > 0, PRECISION, E, BLOCK_N, WIDEN,
        )  # fmt: skip
    if TAIL > 0:
        greatest, total, acc = attend(
            query, k_first, v_first, mask, mask_batch, end, S, rows, row_mask, features, col_mask, greatest, total, acc,
            k_row, v_row, mask_row, mask_col, SCALE, CAUSAL, MASK, False, PRECISION, E, TAIL, WIDEN,
        )  # fmt: skip
    let_next_start(PDL)
    if MASK != "":
        total = tl.where(total == 0.0, 1.0, total)  # a row in which nothing took part gives zeros
    acc = acc / total[:, None]
    at = row_mask & col_mask
    out = EPILOGUE(acc, batch, rows[:, None], cols[None, :], row_mask, col_mask, at, e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3)
    # the output's offset may lack an index whose dimension has size 1
    where = tl.zeros((BLOCK_M, BLOCK_V), tl.int32) + PLACE(
        batch, rows[:, None], cols[None, :], e0, e1, e2, e3, e4, e5, e6, e7, z0, z1, z2, z3
    )
    tl.store(y + where, out.to(y.dtype.element_ty), mask=at)


@triton.jit
def attend(
    query, k_first, v_first, mask, mask_batch, start, S, rows, row_mask, features, col_mask, greatest, total, acc,
    k_row, v_row, mask_row, mask_col,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, MASK: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    E: tl.constexpr, BLOCK_N: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """`greatest`, `total` and `acc` with the keys from `start` on taken in. WHOLE: whether all BLOCK_N of them are there."""
    # scores are scaled where their greatest is taken off, in one instruction, unless something else has to come between
    BEFORE: tl.constexpr = SCALE if MASK == "add" or SCALE <= 0.0 else 1.0
    AFTER: tl.constexpr = SCALE / BEFORE if BEFORE != 0.0 else 1.0
    keys = start + tl.arange(0, BLOCK_N)
    left = keys < S
    k_mask, v_mask = (features < E)[:, None], col_mask
    if not WHOLE:
        k_mask, v_mask = k_mask & left[None, :], v_mask & left[:, None]
    key = tl.load(k_first + keys[None, :] * k_row, mask=k_mask, other=0.0)
    value = tl.load(v_first + keys[:, None] * v_row, mask=v_mask, other=0.0)
    if WIDEN:
        value = value.to(tl.float16)
    scores = dot(query, key, tl.zeros((query.shape[0], BLOCK_N), tl.float32), PRECISION)
    if BEFORE != 1.0:
        scores *= BEFORE
    if MASK != "":
        place = mask_batch + rows[:, None] * mask_row + keys[None, :] * mask_col
        given = tl.load(mask + place, mask=row_mask & left[None, :], other=0)
        if MASK == "add":
            scores += given.to(tl.float32) * 1.4426950408889634
        else:
            scores = tl.where(given != 0, scores, float("-inf"))
    if CAUSAL:
        scores = tl.where(keys[None, :] <= rows[:, None], scores, float("-inf"))
    if not WHOLE:
        scores = tl.where(left[None, :], scores, float("-inf"))
    higher = tl.maximum(greatest, tl.max(scores, 1) * AFTER)
    base = higher
    if MASK != "":
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing has taken part yet
    less = exp2(greatest - base)
    if value.dtype == tl.float8e4nv:
        base -= 8.807354922057604  # exponentials up to 448, as their sums then are: all of float8's range
    powers = exp2(scores * AFTER - base[:, None])
    total = total * less + tl.sum(powers, 1)
    acc = dot(powers.to(value.dtype), value, acc * less[:, None], "ieee" if WIDEN else PRECISION)
    return higher, total, acc


def scores_of(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """What the softmax of attention takes, in plain PyTorch: float32, (..., L, S)."""
    scores = q.float() @ k.float().transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    return scores


def twin(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """The same in plain PyTorch, scores and all. q: (..., L, E), k: (..., S, E), v: (..., S, V)."""
    scores = scores_of(q, k, mask, scale, causal)
    return (scores.softmax(-1).nan_to_num(0.0).to(v.dtype).float() @ v.float()).to(v.dtype)


def twin_float8(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool, rounded: bool, block_n: int
) -> Tensor:
    """The same of float8, `block_n` keys at a time; the result is float32. rounded: exponentials are, to float8."""
    scores = scores_of(q, k, mask, scale, causal)
    greatest = torch.full_like(scores[..., :1], -math.inf)
    total, acc = torch.zeros_like(greatest), torch.zeros(*scores.shape[:-1], v.shape[-1], device=v.device)
    for start in range(0, scores.shape[-1], block_n):
        part = scores[..., start : start + block_n]
        higher = torch.maximum(greatest, part.amax(-1, keepdim=True))
        base = higher.masked_fill(higher == -math.inf, 0.0)
        powers = torch.exp(part - base) * (448 if rounded else 1)
        narrow = powers.clamp(max=448).to(v.dtype if rounded else torch.float16).float()
        less = torch.exp(greatest - base)
        total, acc = total * less + powers.sum(-1, keepdim=True), acc * less + narrow @ v[..., start : start + block_n, :].float()
        greatest = higher
    return acc / total.masked_fill(total == 0.0, 1.0)
