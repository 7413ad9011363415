"""First convolutions over many pixels, or with many taps, through `kernels/stem_taps.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.stem_taps import stem_taps
from torchsmith.backends.cuda.layout import byte_alignment, divisible
from torchsmith.backends.cuda.tactics.convolution import Problem, ceildiv, epilogue_of, problem_of
from torchsmith.backends.cuda.tactics.stem import prologue_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same

MOST_TAPS = 256  # channels included: each is code of its own
MANY_PIXELS = 100_000  # from here on bytes and instructions rule, not latency
MANY_TAPS = 64


@dataclass(frozen=True)
class StemTapsConfig:
    """block_m: pixels, block_n: output channels, block_k: of the sum, that a block handles at a time.

    wide: columns loaded together. tiles: times block_m pixels that a block makes. swapped: see `kernels/stem_taps.py`.
    """

    block_m: int
    block_n: int
    block_k: int
    wide: int
    num_warps: int
    tiles: int = 1
    swapped: bool = False


class StemTapsTemplate:
    name = "stem_taps"
    kinds = frozenset({"convolution", "Convolution"})
    config_type = StemTapsConfig

    def configs(self, e: Emission) -> Sequence[StemTapsConfig]:
        p = problem_of(e)
        count = p.channels * p.kernel[0] * p.kernel[1]
        few = e.likely(p.pixels, MANY_PIXELS) < MANY_PIXELS
        if p.weight.type.dtype == torch.float32:
            raise Unsupported("products in float32: the sums, not the loads, take the time")
        if p.groups > 1:
            raise Unsupported(f"{p.groups} groups; it takes one")
        if p.row_stride is None:
            raise Unsupported("the output's pixels do not lie in one sweep")
        if count > MOST_TAPS:
            raise Unsupported(f"a sum over {count} channels and taps; it takes up to {MOST_TAPS}")
        if few and count < MANY_TAPS:
            raise Unsupported(f"{p.pixels} pixels, {count} channels and taps; it takes {MANY_PIXELS} pixels or {MANY_TAPS} taps")
        wide = 4 if pairs(e, p) else 1
        n = max(16, min(128, 1 << (p.filters - 1).bit_length()))
        found = [c for c in _guesses(n, wide, few) if c.block_k < 2 * _length(p, c.wide)]
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: StemTapsConfig) -> None:
        p, wide = problem_of(e), config.wide
        lead = _lead(p, wide)
        across = -(-(p.kernel[1] + lead) // wide)
        total = _length(p, wide)
        last = max(16, 1 << (total % config.block_k - 1).bit_length()) if total % config.block_k else config.block_k
        last = min(last, config.block_k)
        k = (total - 1) // config.block_k * config.block_k + last
        how = f"taps{wide}x{lead}x{config.block_k}"
        w = e.packed(p.weight, how, lambda t: weights_in_order(t, wide, lead, config.block_k, k))
        writer, epilogue = epilogue_of(e, p)
        prologue = prologue_of(e, p, writer)
        top, bottom = _inside(p, 0, 0, 1)
        left, right = _inside(p, 1, lead, wide)
        e.launch(
            stem_taps,
            (ceildiv(p.pixels, config.block_m * config.tiles) * -(-p.filters // config.block_n),),
            {
                **dict(
                    x=p.x, w=w, y=p.output, M=p.pixels, N=p.filters, H=p.size[0], W=p.size[1], OH=p.out_size[0], OW=p.out_size[1]
                ),
                **dict(zip(("x_image", "x_channel", "x_row", "x_pixel"), p.strides, strict=True)),
                **dict(y_row=p.row_stride, y_col=p.out_strides[1]),
                **writer.arguments(),
                **dict(C=p.channels, R=p.kernel[0], T=across, WIDE=wide, K=k, STRIDE_H=p.stride[0], STRIDE_W=p.stride[1]),
                **dict(PAD_H=p.padding[0][0], PAD_W=p.padding[1][0] + lead, DILATION_H=p.dilation[0], DILATION_W=p.dilation[1]),
                **dict(TOP=top, BOTTOM=bottom, LEFT=left, RIGHT=right, EVEN=divisible(p.pixels, config.block_m * config.tiles)),
                **dict(PROLOGUE=prologue, ZERO_STAYS=all(type(n.op).__name__ == "Cast" for n in p.parts.before)),
                **dict(EPILOGUE=epilogue, PRECISION=e.precision(p.parts.main), PDL=True),
                **dict(
                    BLOCK_M=config.block_m,
                    BLOCK_N=config.block_n,
                    BLOCK_K=config.block_k,
                    LAST_K=last,
                    TILES=config.tiles,
                    SWAPPED=config.swapped,
                ),
            },
            writes=[p.output],
            num_warps=config.num_warps,
            num_stages=1,
        )


def _guesses(n: int, wide: int, few: bool) -> list[StemTapsConfig]:
    """For up to n output channels, the best first."""
    narrow = min(n, 64)
    if few:  # latency rules: many blocks, many loads under way in each
        return [
            StemTapsConfig(64, narrow, 128, wide, 4, 1, narrow == 64),
            StemTapsConfig(64, narrow, 256, wide, 4, 1, narrow == 64),
            StemTapsConfig(64, narrow, 64, wide, 4, 1, narrow == 64),
            StemTapsConfig(32, narrow, 64, wide, 2),
            StemTapsConfig(64, min(n, 32), 64, wide, 4),
            StemTapsConfig(32, min(n, 32), 64, wide, 2),
        ]
    swapped = n >= 64  # the rows of a product on tensor cores of compute capability 9 are 64
    return [
        StemTapsConfig(128, narrow, 32, wide, 4, 4, swapped),
        StemTapsConfig(128, narrow, 32, wide, 4, 1, swapped),
        *(
            [StemTapsConfig(128, narrow, 64, wide, 4, 4, True), StemTapsConfig(128, narrow, 32, wide, 4)]
            if swapped
            else [StemTapsConfig(128, narrow, 64, wide, 4, 4)]
        ),
        *([StemTapsConfig(128, n, 32, wide, 4, 4, True)] if n > narrow else ()),
        *([StemTapsConfig(128, narrow, 32, 1, 4, 4, swapped)] if wide > 1 else ()),
        StemTapsConfig(64, narrow, 64, wide, 4, 8, swapped),
        StemTapsConfig(64, narrow, 32, wide, 4, 4, swapped),
        *([StemTapsConfig(256, narrow, 32, wide, 4, 2), StemTapsConfig(64, narrow, 32, wide, 2, 4)] if not swapped else ()),
        StemTapsConfig(256, narrow, 32, wide, 8, 2, swapped),
    ]


def _lead(p: Problem, wide: int) -> int:
    """Columns before the window: with pairs, the first that is loaded is an even one."""
    return p.padding[1][0] % min(wide, 2)


def _length(p: Problem, wide: int) -> int:
    """Of the sum, zeros between included."""
    return p.channels * p.kernel[0] * -(-(p.kernel[1] + _lead(p, wide)) // wide) * wide


def pairs(e: Emission, p: Problem) -> bool:
    """Whether two columns can be one load: both in the picture or both outside, at an even place."""
    even = all(divisible(d, 2) for d in (*p.strides[:3], p.size[1], p.stride[1]))
    aligned = byte_alignment(e.view(p.x), p.x.type.dtype) >= 2 * p.x.type.dtype.itemsize
    return even and aligned and same(p.strides[3], 1) and p.dilation[1] == 1


def _inside(p: Problem, axis: int, lead: int, wide: int) -> tuple[int, int]:
    """(first, end): taps of the axis in this range are never outside the picture. Columns count from the first that is loaded."""
    size, out, stride, dilation = p.size[axis], p.out_size[axis], p.stride[axis], p.dilation[axis]
    before = p.padding[axis][0] + lead
    first = -(-before // dilation)
    if isinstance(size, int) and isinstance(out, int):
        room = size - 1 - ((out - 1) * stride - before)  # the furthest from the last window's start that is inside
        return first, (room - (wide - 1)) // dilation + 1
    return first, 0 if p.padding[axis][1] or before or wide > 1 else p.kernel[axis]


def weights_in_order(weight: Tensor, wide: int, lead: int, block_k: int, k: int) -> Tensor:
    """(K, C, R, S) as (K, k): taps of `wide` columns, in blocks: first all first columns of a block's taps, then all second."""
    if weight.dim() == 3:
        weight = weight.unsqueeze(2)
    filters, _, _, columns = weight.shape
    flat = torch.nn.functional.pad(weight, (lead, -(columns + lead) % wide)).reshape(filters, -1)
    flat = torch.nn.functional.pad(flat, (0, k - flat.shape[1]))
    blocks = [b.reshape(filters, -1, wide).transpose(1, 2).reshape(filters, -1) for b in torch.split(flat, block_k, 1)]
    return torch.cat(blocks, 1)


TEMPLATE = StemTapsTemplate()
