"""Configurations of depthwise convolutions for `kernels/depthwise_strips.py`: where there are many pictures."""

from __future__ import annotations

from typing import Any

from torchsmith.backends.cuda.kernels.depthwise_strips import multiply_add

SMS = 132  # streaming multiprocessors that guesses are made for
MOST = 4  # configurations
MAX_UNROLLED = 2500  # multiplications of a thread, for each of its channels: more take the compiler many seconds


def strips(p: Any, images: int) -> list[tuple[int, int, int, int, int, int]]:
    """block_c, tile_h, tile_w, groups_h, groups_w, num_warps, the best guess first; none where there is too little work.

    p: the `Depthwise`, of known rows and columns. images: how many pictures to guess for.
    """
    rows, columns = p.y_sizes[2:]
    taps, found = p.kernel[0] * p.kernel[1], []
    vector = 1 if p.x.type.dtype.itemsize == 4 else 2
    if taps > 25 or not all(isinstance(n, int) for n in (*p.x_sizes[2:], rows, columns)):
        return []
    heights = {t for t in (4, 7, 14, rows) if 4 <= t <= min(14, rows)}
    for tile_w in (t for t in (4, 5, 6, 7) if t <= columns):
        for tile_h in heights:
            for groups_w in (1, 2, 4, 8):
                for block_c in (16, 32, 64):
                    num_warps = groups_w * block_c // (32 * vector)
                    too_wide = block_c > 16 and block_c >= 2 * p.channels
                    if num_warps in (1, 2, 4) and taps * tile_h * tile_w <= MAX_UNROLLED and not too_wide:
                        found.append((block_c, tile_h, tile_w, 1, groups_w, num_warps))
    ranked = sorted((_cycles(p, c, images, vector), c) for c in found)
    varied: list[tuple[int, int, int, int, int, int]] = []
    for _, c in ranked:
        if len(varied) < MOST and c[1:3] not in [v[1:3] for v in varied] and _warps(p, c, images) >= 8 * SMS:
            varied.append(c)
    return varied


def _warps(p: Any, c: tuple[int, int, int, int, int, int], images: int) -> int:
    block_c, tile_h, tile_w, _, groups_w, num_warps = c
    tiles = -(-p.y_sizes[2] // tile_h) * -(-p.y_sizes[3] // (tile_w * groups_w))
    return int(images * -(-p.channels // block_c) * tiles * num_warps)


def _cycles(p: Any, c: tuple[int, int, int, int, int, int], images: int, vector: int) -> float:
    """What is issued on one of a multiprocessor's four schedulers, and what warps that are too few leave idle."""
    block_c, tile_h, tile_w, _, groups_w, _ = c
    multiplied, loaded = 1.0, 1.0
    spans = []
    for axis, tile, groups in ((0, tile_h, 1), (1, tile_w, groups_w)):
        span = (tile - 1) * p.stride[axis] + (p.kernel[axis] - 1) * p.dilation[axis] + 1
        spans.append(span)
        if tile * groups == p.y_sizes[2 + axis] == tile:  # nothing is outside
            known = min(span, p.x_sizes[2 + axis])
            multiplied *= known * p.kernel[axis] / span
            loaded *= known
        else:
            multiplied *= p.kernel[axis]
            loaded *= span * 1.15
    held = -(-p.kernel[0] // p.stride[0]) * tile_w
    registers = 30 + vector * (held + spans[1] * 1.5 + p.kernel[0] * p.kernel[1])
    issued = vector * (tile_h * tile_w * (multiplied + 9) + loaded * 1.6 + 3 * p.kernel[0] * p.kernel[1]) + 150
    issued += 4 * loaded * max(0.0, groups_w * 16.0 / block_c - 2) / 2  # lines that one load touches
    warps = _warps(p, c, images) / (4 * SMS)
    resident = min(16.0, 512 / registers)
    return float(issued * max(1.0, warps) * (1 + 2.0 / min(resident, warps)) * (4.0 if registers > 250 else 1.0))


def strip_arguments(p: Any, c: Any) -> dict[str, Any]:
    """Those parameters of `depthwise_strips` that `depthwise` has not. p: the `Depthwise`, c: the `DepthwiseConfig`."""
    free, one, full = [], [], []
    tiles, groups = (c.tile_h, c.tile_w), (c.groups_h, c.groups_w)
    for axis in range(2):
        size, made = p.x_sizes[2 + axis], p.y_sizes[2 + axis]
        count = -(-made // (tiles[axis] * groups[axis])) * groups[axis]
        last = (count - 1) * tiles[axis]  # where the last tile starts
        free.append(size + p.padding[axis] - last * p.stride[axis])
        one.append(count == 1)
        full.append(made - last)
    span = (c.tile_w - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1
    first, end = (p.padding[1], min(free[1], span)) if one[1] else (0, span)
    return {
        **dict(FREE_H=free[0], FREE_W=free[1], ONE_H=one[0], ONE_W=one[1], FULL_H=full[0], FULL_W=full[1]),
        **dict(FULL_C=p.channels % c.block_c == 0),
        **dict(MULTIPLY_ADD=multiply_add(c.tile_w, p.kernel[1], p.stride[1], p.dilation[1], first, end)),
    }
