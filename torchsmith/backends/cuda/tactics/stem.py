"""Convolutions of pictures in any layout, with pointwise work before them, through `kernels/stem.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.stem import stem
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.convolution import Problem, ceildiv, epilogue_of, problem_of
from torchsmith.backends.cuda.tactics.gemm_configs import PROCESSORS
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import same

MOST_CHANNELS = 64  # with channels innermost and more of them, `convolution.py` is the better one


@dataclass(frozen=True)
class StemConfig:
    """block_m: pixels, block_n: output channels, block_k: of the sum over channels and taps, that a block handles at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 1


class StemTemplate:
    name = "stem"
    kinds = frozenset({"convolution", "Convolution"})
    config_type = StemConfig

    def configs(self, e: Emission) -> Sequence[StemConfig]:
        p = problem_of(e)
        channels, filters = p.channels // p.groups, p.filters // p.groups
        k = channels * p.kernel[0] * p.kernel[1]
        if same(p.strides[1], 1) and channels > MOST_CHANNELS:
            raise Unsupported(f"{channels} channels a group, innermost: more than {MOST_CHANNELS}")
        if filters < 8 and p.groups > 1:
            raise Unsupported(f"{filters} output channels a group would leave most of a block empty")
        self.emit(Emission(e.node, e.views, e._packed), StemConfig(32, 16, 32, 4))  # whether the hooks can be written
        m = e.likely(p.pixels, 1 << 14)
        shapes = (
            (128, 64, 32, 8), (128, 32, 32, 4), (64, 64, 32, 4), (64, 32, 32, 4), (32, 32, 32, 2), (128, 128, 32, 8),
            (32, 64, 32, 4), (64, 64, 64, 4), (64, 128, 64, 8), (32, 32, 64, 4), (16, 64, 64, 4), (64, 16, 32, 4), (128, 16, 32, 4),
            (32, 32, 128, 4), (128, 64, 16, 8), (64, 64, 16, 4), (64, 32, 16, 4), (32, 16, 32, 2),
        )  # fmt: skip
        found = [
            StemConfig(bm, bn, bk, warps, stages)
            for bm, bn, bk, warps in shapes
            for stages in ((1, 3) if k >= 4 * bk else (1,))
            if (bn <= 16 or bn < 2 * filters) and (bk <= 32 or bk <= k) and (bm <= 32 or bm < 2 * m)
        ]
        return sorted(found, key=lambda c: _cost(c, m, filters, p.groups, k))[:12]

    def emit(self, e: Emission, config: StemConfig) -> None:
        p = problem_of(e)
        channels, filters = p.channels // p.groups, p.filters // p.groups
        # the innermost part of the sum is what lies together in the picture
        first = not same(p.strides[1], 1) or channels == 1
        order = "crs" if first else "rsc"
        w = e.packed(p.weight, f"{order}{config.block_k}", lambda t: flat_weights(t, first, config.block_k))
        writer, epilogue = epilogue_of(e, p)
        prologue = prologue_of(e, p, writer)
        out_strides = p.out_strides if p.row_stride is None else (None, p.out_strides[1], None, p.row_stride)
        e.launch(
            stem,
            (ceildiv(p.pixels, config.block_m) * -(-filters // config.block_n), p.groups),
            {
                **dict(x=p.x, w=w, y=p.output, M=p.pixels, N=filters, H=p.size[0], W=p.size[1], OH=p.out_size[0], OW=p.out_size[1]),
                **dict(zip(("x_image", "x_channel", "x_row", "x_pixel"), p.strides, strict=True)),
                **dict(zip(("y_image", "y_channel", "y_row", "y_pixel"), out_strides, strict=True)),
                **writer.arguments(),
                **dict(C=channels, R=p.kernel[0], S=p.kernel[1], CHANNELS_FIRST=first),
                **dict(STRIDE_H=p.stride[0], STRIDE_W=p.stride[1], PAD_H=p.padding[0][0], PAD_W=p.padding[1][0]),
                **dict(DILATION_H=p.dilation[0], DILATION_W=p.dilation[1], PADDED=p.padded),
                **dict(PROLOGUE=prologue, ZERO_STAYS=all(type(n.op).__name__ == "Cast" for n in p.parts.before)),
                **dict(EPILOGUE=epilogue, PRECISION=e.precision(p.parts.main), PDL=True),
                **dict(BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k),
            },
            writes=[p.output],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


def prologue_of(e: Emission, p: Problem, writer: HookWriter) -> Hook | None:
    """What comes before the convolution, as `prologue(x, image, channel, row, pixel, row_mask, k_mask, mask, …)`."""
    if not p.parts.before:
        return None
    wanted = p.parts.main.inputs[0]
    before = HookWriter(e.views, e.constant, writer.operands, writer.sizes)
    if p.x.type.dtype in (torch.float16, torch.bfloat16, torch.float32):
        before.lines.append("x = x.to(tl.float32)")
    before.names[p.x] = "x"
    spatial = ("row", "pixel")[-(wanted.type.rank - 2) :]
    indices = [("image", (0,)), ("channel", (1,)), *((name, (2 + axis,)) for axis, name in enumerate(spatial))]
    masks = (("image", "row_mask"), ("channel", "k_mask"), ("row", "mask"), ("pixel", "mask"))
    before.compute(p.parts.before, Space(wanted.type.shape, tuple(indices), masks))
    names = ("x", "image", "channel", "row", "pixel", "row_mask", "k_mask", "mask")
    return before.hook("prologue", names, [before.names[wanted]])


def flat_weights(weight: Tensor, channels_first: bool, block_k: int) -> Tensor:
    """(K, C, *kernel) as (K, sum), the sum over (channel, tap) or (tap, channel), padded to whole blocks by zeros."""
    flat = (weight if channels_first else weight.movedim(1, -1)).flatten(1)
    return torch.nn.functional.pad(flat, (0, -flat.shape[1] % block_k))


def _cost(c: StemConfig, m: int, filters: int, groups: int, k: int) -> float:
    """Roughly how many cycles: gathering costs a dozen instructions an element, and is repeated for every block of filters."""
    blocks = -(-m // c.block_m) * -(-filters // c.block_n) * groups
    steps = -(-k // c.block_k)
    gather = steps * c.block_m * c.block_k * 12 / 128
    store = c.block_m * c.block_n * 2 / 16
    latency = steps * (700 if c.num_stages == 1 else 300) + 1500
    each = -(-blocks // PROCESSORS)
    resident = max(1, min(32 // c.num_warps, 65536 // (32 * c.num_warps * 96)))
    return max(each * (gather + store), -(-each // resident) * (latency + gather + store))


TEMPLATE = StemTemplate()
