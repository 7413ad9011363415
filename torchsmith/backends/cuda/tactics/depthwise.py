"""Depthwise convolutions through `kernels/depthwise.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.epilogue import convolution_kind
from torchsmith.backends.cuda.kernels.depthwise import depthwise
from torchsmith.backends.cuda.kernels.depthwise_strips import depthwise_strips
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.tactics.depthwise_strips import strip_arguments, strips
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, floordiv, product
from torchsmith.ir.graph import Value

SMS = 132  # streaming multiprocessors that guesses are made for
USUAL_BATCH, USUAL_SIDE, USUAL_SHARES = 8, 28, 64  # what guesses take an unknown size for
MAX_TAPS = 81  # of a kernel that is unrolled
MAX_UNROLLED = 1024  # multiplications of a thread: more take the compiler many seconds
MAX_ELEMENTS = 1 << 31  # offsets are 32-bit within a picture


@dataclass(frozen=True)
class DepthwiseConfig:
    """A thread holds tile_h × tile_w pixels; a block groups_h × groups_w such tiles of block_c channels.

    early: whether weights are loaded while the kernel before still runs, which takes registers. Tiles of at least 4 × 4 of
    early weights are for `kernels/depthwise_strips.py`.
    """

    block_c: int
    tile_h: int
    tile_w: int
    groups_h: int
    groups_w: int
    num_warps: int
    early: bool

    @property
    def strips(self) -> bool:
        return self.early and min(self.tile_h, self.tile_w) >= 4


@dataclass(frozen=True)
class Depthwise:
    """The convolution as a two-dimensional one. x, y: sizes are (pictures, channels, rows, columns), as are the strides.

    zero: which number of x stands for 0. w: the taps; of an int8 x they are float32, and have x's scale in them.
    """

    parts: Parts
    x: Value
    y: Value
    w: Value
    bias: Value | None
    x_sizes: tuple[Dim, ...]
    y_sizes: tuple[Dim, ...]
    x_strides: tuple[Dim, ...]
    y_strides: tuple[Dim, ...]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    zero: int = 0

    @property
    def channels(self) -> int:
        return int(self.x_sizes[1])

    def blocks(self, c: DepthwiseConfig) -> tuple[int, Dim]:
        """Blocks over the channels, and tiles over the pixels of one picture."""
        rows, columns = self.y_sizes[2:]
        return ceildiv_int(self.channels, c.block_c), product(
            (ceildiv(rows, c.groups_h * c.tile_h), ceildiv(columns, c.groups_w * c.tile_w))
        )


class DepthwiseTemplate:
    name = "depthwise"
    kinds = frozenset({"depthwise", "Convolution"})
    config_type = DepthwiseConfig

    def configs(self, e: Emission) -> Sequence[DepthwiseConfig]:
        p = depthwise_of(e, parts_of(e.node, "Convolution"), e.node.outputs[0])
        found = depthwise_configs(e, p, 0)
        emit_depthwise(Emission(e.node, e.views, e._packed), p, found[0], None, None)  # whether the hook can be written
        return found

    def emit(self, e: Emission, config: DepthwiseConfig) -> None:
        p = depthwise_of(e, parts_of(e.node, "Convolution"), e.node.outputs[0])
        emit_depthwise(e, p, config, None, None)


def depthwise_of(e: Emission, parts: Parts, y: Value) -> Depthwise:
    """The node as a depthwise convolution that gives y. Raises Unsupported where it is none."""
    op: Any = parts.main.op
    x, w = parts.main.inputs[:2]
    bias = parts.main.inputs[2] if len(parts.main.inputs) > 2 else None
    if convolution_kind(parts.main) != "depthwise":
        raise Unsupported("the convolution is not depthwise")
    given = scale_of(e, parts)
    if parts.before and given is None:
        raise Unsupported("something comes before the convolution")
    if x.type.rank > 4:
        raise Unsupported(f"a depthwise convolution in {x.type.rank - 2} dimensions; it takes one or two")
    if x.type.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise Unsupported(f"a depthwise convolution of {x.type.dtype}")
    if e.constant(w) is None or (bias is not None and e.constant(bias) is None):
        raise Unsupported("the convolution's weights are only known when it runs")
    padded = (1, 1, *w.type.shape[2:])[-2:]
    if int(padded[0]) * int(padded[1]) > MAX_TAPS:
        raise Unsupported(f"a depthwise convolution with {padded[0]}×{padded[1]} taps; it takes up to {MAX_TAPS}")
    if any(isinstance(n, int) and n >= MAX_ELEMENTS for n in (x.type.numel, y.type.numel)):
        raise Unsupported(f"a depthwise convolution of {x.type}; it takes fewer than {MAX_ELEMENTS} elements")
    q, scale, zero = given or (x, 1.0, 0)
    how, dtype = ("taps", w.type.dtype) if given is None else (f"taps by {scale!r}", torch.float32)
    return Depthwise(
        parts, q, y,
        e.packed(w, how, lambda t: (t if given is None else t.to(dtype) * scale).flatten(1).T), bias,
        _with_rows(x.type.shape, 1, 4), _with_rows(y.type.shape, 1, 4),
        _with_rows(e.view(q).strides, 0, 4), _with_rows(e.view(y).strides, 0, 4),
        (int(padded[0]), int(padded[1])),
        _with_rows(op.stride, 1, 2), _with_rows(op.dilation, 1, 2), _with_rows([p[0] for p in op.padding], 0, 2),
        zero,
    )  # fmt: skip


def scale_of(e: Emission, parts: Parts) -> tuple[Value, float, int] | None:
    """The integers, their scale and their zero point, where all that comes before the convolution is to dequantize them."""
    if [type(n.op).__name__ for n in parts.before] != ["Dequantize"]:
        return None
    q, *known = parts.before[0].inputs
    numbers = [e.constant(v) for v in known]
    if q.type.dtype != torch.int8 or any(t is None or t.numel() != 1 for t in numbers):
        return None
    scale, zero = (*(t.item() for t in numbers if t is not None), 0)[:2]
    return q, float(scale), int(zero)


def _with_rows(sizes: Sequence[Any], missing: int, rank: int) -> Any:
    """The sizes of a picture; of one dimension it is a picture with one row."""
    return tuple(sizes) if len(sizes) == rank else (*sizes[:-1], missing, sizes[-1])


def emit_depthwise(
    e: Emission, p: Depthwise, c: DepthwiseConfig, squeeze: Value | None, partial: Value | None, summand: Value | None = None
) -> None:
    """Add the kernel. squeeze, partial: as `kernels/depthwise.py` takes them. summand: what is summed, y where it is not given."""
    main = p.parts.main.outputs[0]
    pixels = tuple(range(2, main.type.rank))
    space = Space(main.type.shape, (("batch", (0,)), ("pixels", pixels), ("channels", (1,))))
    writer = HookWriter(e.views, e.constant)
    writer.names[main] = "acc"
    writer.compute(p.parts.after, space)
    epilogue = writer.hook(
        "epilogue", ("acc", "batch", "pixels", "channels", "mask"), [writer.names[v] for v in (p.y, summand or p.y)]
    )
    over_channels, tiles = p.blocks(c)
    units = int(squeeze.type.shape[0]) if squeeze is not None else None
    own = strip_arguments(p, c) if c.strips else {"EARLY": c.early}
    e.launch(
        depthwise_strips if c.strips else depthwise,
        (product((over_channels, tiles, p.y_sizes[0])),),
        {
            **dict(x=p.x, w=p.w, bias=p.bias, y=p.y, squeeze=squeeze, partial=partial),
            **dict(C=p.channels, H=p.x_sizes[2], W=p.x_sizes[3], OH=p.y_sizes[2], OW=p.y_sizes[3], S=units),
            **dict(zip(("x_n", "x_c", "x_h", "x_w"), p.x_strides, strict=True)),
            **dict(zip(("y_n", "y_c", "y_h", "y_w"), p.y_strides, strict=True)),
            **writer.arguments(),
            **dict(EPILOGUE=epilogue, KH=p.kernel[0], KW=p.kernel[1], STRIDE_H=p.stride[0], STRIDE_W=p.stride[1]),
            **dict(DILATION_H=p.dilation[0], DILATION_W=p.dilation[1], PAD_H=p.padding[0], PAD_W=p.padding[1]),
            **dict(BLOCK_C=c.block_c, TILE_H=c.tile_h, TILE_W=c.tile_w, GROUPS_H=c.groups_h, GROUPS_W=c.groups_w),
            **dict(BLOCK_S=squeeze_block(units, c), ZERO=p.zero, PDL=True),
            **own,
        },
        writes=[p.y] if partial is None else [p.y, partial],
        num_warps=c.num_warps,
    )


def squeeze_block(units: int | None, c: DepthwiseConfig) -> int:
    """How many rows of the squeezing layer are multiplied at a time: up to 32 factors a thread."""
    return 1 if units is None else max(1, min(up(units), c.num_warps * 1024 // c.block_c, 16 if c.strips else up(units)))


# ---- guesses --------------------------------------------------------------------------------------------------------------


def depthwise_configs(e: Emission, p: Depthwise, units: int) -> list[DepthwiseConfig]:
    """A dozen configurations, the best guess first. units: of the squeezing layer that comes after, 0 for none."""
    images, sides = e.likely(p.y_sizes[0], USUAL_BATCH), (e.likely(n, USUAL_SIDE) for n in p.y_sizes[2:])
    likely = replace(p, y_sizes=(images, p.channels, *sides))
    ranked = sorted(_candidates(likely), key=lambda c: (guessed_cycles(likely, c, units), c.num_warps, c.block_c))
    found = [DepthwiseConfig(*c, early=True) for c in strips(p, images)]
    for c in ranked:  # varied ones
        same_tile = [f for f in found if (f.tile_h, f.tile_w, f.block_c) == (c.tile_h, c.tile_w, c.block_c)]
        if len(same_tile) < 2 and len([f for f in found if f.block_c == c.block_c]) < 5:
            found.append(c)
        if len(found) == 12:
            break
    return found


def _candidates(p: Depthwise) -> list[DepthwiseConfig]:
    _, _, rows, columns = map(int, p.y_sizes)
    widest = min(8, 16 // p.x.type.dtype.itemsize)  # sixteen sums a pixel would take the registers of others
    taps = p.kernel[0] * p.kernel[1]
    found = []
    for block_c in (8, 16, 32, 64, 128):
        if block_c > 8 and block_c >= 2 * up(p.channels):
            continue
        for tile_h, tile_w in ((1, 1), (1, 2), (1, 4), (1, 7), (2, 2), (2, 4), (2, 7), (4, 2)):
            if tile_w > columns or tile_h > rows or (p.kernel[0] == 1 and tile_h > 1):
                continue
            across = up(-(-columns // tile_w))
            down = up(-(-rows // tile_h))
            for num_warps in (1, 2, 4, 8):
                for vector in {widest, widest // 2, min(2, widest)}:
                    groups = num_warps * 32 * vector // block_c
                    if groups < 1 or groups > across * down or taps * tile_h * tile_w * vector > MAX_UNROLLED:
                        continue
                    for groups_w in {min(across, groups), min(across, max(1, groups // 4), 8)}:
                        if groups // groups_w <= down:
                            c = DepthwiseConfig(block_c, tile_h, tile_w, groups // groups_w, groups_w, num_warps, False)
                            found.append(replace(c, early=taps <= 25 and _blocks(p, c) * num_warps <= 8 * SMS))
    if not found:  # a picture smaller than a warp
        found.append(DepthwiseConfig(min(128, max(8, up(p.channels))), 1, 1, 1, 1, 1, False))
    return list(dict.fromkeys(found))


def guessed_cycles(p: Depthwise, c: DepthwiseConfig, units: int) -> float:
    """Clock cycles of one multiprocessor, roughly: what is issued, what L1 and L2 move, and the latency that nothing hides.

    p: of known sizes.
    """
    blocks = _blocks(p, c)
    itemsize = p.x.type.dtype.itemsize
    pixels = c.groups_h * c.groups_w
    vector = max(1, pixels * c.block_c // (32 * c.num_warps))  # channels of a thread
    in_h = (c.tile_h - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1
    in_w = (c.tile_w - 1) * p.stride[1] + (p.kernel[1] - 1) * p.dilation[1] + 1
    taps, outputs = p.kernel[0] * p.kernel[1], c.tile_h * c.tile_w
    loads = in_h * in_w + taps
    issued = loads * (5 + vector) + taps * outputs * vector + outputs * vector * 8 + 150
    registers = 40 + outputs * vector + in_w * vector + (taps if c.early else p.kernel[1]) * vector * itemsize // 4
    if registers > 230:
        issued *= 3  # they are spilled
    resident = max(1, min(64, 2048 // (registers + 8)) // c.num_warps)  # blocks at once
    each = -(-blocks // SMS)  # blocks of the busiest multiprocessor
    warps = each * c.num_warps
    footprint = (c.groups_h * c.tile_h * p.stride[0] + p.kernel[0]) * (c.groups_w * c.tile_w * p.stride[1] + p.kernel[1])
    sector = max(32, c.block_c * itemsize)
    squeezed = units * (c.block_c * itemsize + 8)
    moved = each * (footprint * sector + pixels * outputs * sector + taps * c.block_c * itemsize + squeezed)
    lines = 32 * vector / c.block_c * max(1.0, c.block_c * itemsize / 128)  # that one load of a warp touches
    l1 = warps * loads * max(1.0, vector * itemsize * 32 / 128, lines / 2)
    issue = issued * max(1.0, warps / 4)
    waves = -(-each // resident)
    reduced = (250 + 2 * units) if units else 0
    later = blocks // int(p.y_sizes[0]) * units * 4 / 32 if units else 0  # what the gate's blocks each read
    return (
        max(issue, l1, moved / 32)
        + 0.3 * (issue + l1 + moved / 32) / max(1, min(each, resident))
        + waves * (700 + reduced)
        + later
        + 50 * each
    )


def _blocks(p: Depthwise, c: DepthwiseConfig) -> int:
    return int(product((p.y_sizes[0], *p.blocks(c))))


def up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def ceildiv(a: Dim, b: int) -> Dim:
    return ceildiv_int(a, b) if isinstance(a, int) else floordiv(a + b - 1, b)


def ceildiv_int(a: int, b: int) -> int:
    return -(-a // b)


TEMPLATE = DepthwiseTemplate()
