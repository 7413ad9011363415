"""Convolutions of channels-last pictures with at least 16 channels a group through `kernels/convolution.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.groups import LEAST_CHANNELS, merged
from torchsmith.backends.cuda.kernels.convolution import convolution, sum_parts
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.gemm_configs import (
    CHAIN,
    LATENCY,
    PROCESSORS,
    REGISTERS,
    SHARED_BYTES,
    START,
    WRITTEN_EACH,
)
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, bind, floordiv, product, same, symbols_in
from torchsmith.ir.graph import Value


@dataclass(frozen=True)
class ConvolutionConfig:
    """block_m: pixels, block_n: output channels, block_k: input channels that a block takes at a time. split: parts of the sum."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split: int = 1


@dataclass(frozen=True)
class Problem:
    """A convolution in one or two dimensions; one-dimensional pictures have height 1.

    x: what the kernel loads. images: how many pictures. size, out_size: (H, W) of the input and of the output. strides,
    out_strides: of x and of the output over (picture, channel, row, pixel).
    """

    parts: Parts
    x: Value
    weight: Value
    bias: Value | None
    output: Value
    images: Dim
    channels: int
    filters: int
    size: tuple[Dim, Dim]
    out_size: tuple[Dim, Dim]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    strides: tuple[Dim, Dim, Dim, Dim]
    out_strides: tuple[Dim, Dim, Dim, Dim]

    @property
    def pixels(self) -> Dim:
        return product((self.images, *self.out_size))

    @property
    def merged(self) -> tuple[int, int, int]:
        """Groups, and each one's channels and filters, as the kernel takes them."""
        return merged(self.groups, self.channels // self.groups, self.filters // self.groups)

    @property
    def padded(self) -> bool:
        return any(map(any, self.padding))

    @property
    def row_stride(self) -> Dim | None:
        """From one output pixel to the next where all lie in one sweep, else None."""
        _, _, row, pixel = self.out_strides
        (images, (height, width)) = (self.images, self.out_size)
        found: Dim | None = None
        step: Dim = 0
        for size, stride in ((width, pixel), (height, row), (images, self.out_strides[0])):
            if same(size, 1):
                continue
            if found is not None and not same(stride, step):
                return None
            found, step = (stride if found is None else found), stride * size
        return 0 if found is None else found


class ConvolutionTemplate:
    name = "convolution"
    kinds = frozenset({"convolution", "convolution_int8", "Convolution", "IntegerConvolution"})
    config_type = ConvolutionConfig

    def configs(self, e: Emission) -> Sequence[ConvolutionConfig]:
        p = problem_of(e)
        if p.parts.before:
            raise Unsupported("the convolution's input is computed as it loads")
        if not same(p.strides[1], 1):
            raise Unsupported("the picture's channels are not innermost")
        if p.row_stride is None:
            raise Unsupported("the output's pixels do not lie in one sweep")
        groups, channels, filters = p.merged
        if channels < LEAST_CHANNELS:
            raise Unsupported(f"{channels} channels a group; it takes {LEAST_CHANNELS} and more")
        m = e.likely(p.pixels, 1 << 14)
        taps, shapes = p.kernel[0] * p.kernel[1], shapes_of(e, p)
        least = min(shape[2] for shape in shapes)
        found: list[tuple[float, ConvolutionConfig]] = []
        for bm, bn, bk, warps, stages in shapes:
            if (bm > 16 and bm >= 2 * m) or (bn > 16 and bn >= 2 * filters) or (bk > least and bk >= 2 * channels):
                continue
            steps = taps * -(-channels // bk)
            for split in SPLITS:
                if split > 1 and (split > steps // 2 or not isinstance(p.pixels, int)):
                    continue
                c = ConvolutionConfig(bm, bn, bk, warps, stages, split)
                found.append((cost(c, m, filters, groups, steps, p.x.type.dtype.itemsize), c))
        found.sort(key=lambda f: f[0])
        # of one shape no more than two splits, so that a short list stays varied
        ordered = [c for i, (_, c) in enumerate(found) if sum(replace(c, split=1) == replace(o, split=1) for _, o in found[:i]) < 2]
        self.emit(Emission(e.node, e.views, e._packed), replace(ordered[0], split=1))  # whether the hooks can be written
        whole = [c for c in ordered[9:] if c.split == 1]  # one kernel less; the model may think too little of that
        return [*ordered[:9], *whole[:4]]

    def emit(self, e: Emission, config: ConvolutionConfig) -> None:
        p = problem_of(e)
        groups, channels, filters = p.merged
        writer, epilogue = epilogue_of(e, p)
        blocks_k = -(-channels // config.block_k)
        w = e.packed(p.weight, f"taps{groups}x{config.block_k}", lambda t: by_taps(t, p.groups, groups, config.block_k))
        per_part = -(-p.kernel[0] * p.kernel[1] * blocks_k // config.split)
        # few pixels: the weights come from memory, and each is used by few blocks
        lines = 0
        if isinstance(p.pixels, int) and p.pixels <= 4096:
            shared_by = 128 // w.type.dtype.itemsize * -(-p.pixels // config.block_m)
            lines = _up(-(-per_part * config.block_k // shared_by))
        split = config.split > 1
        sums = torch.int32 if p.x.type.dtype == torch.int8 else torch.float32
        y = p.output if not split else e.temporary((config.split, p.pixels, filters * groups), sums, "parts")
        common = {
            **dict(x=p.x, w=w, y=y, M=p.pixels, N=filters, C=channels, H=p.size[0], W=p.size[1], OH=p.out_size[0]),
            **dict(OW=p.out_size[1], x_image=p.strides[0], x_row=p.strides[2], x_pixel=p.strides[3]),
            **dict(R=p.kernel[0], S=p.kernel[1], STRIDE_H=p.stride[0], STRIDE_W=p.stride[1]),
            **dict(PAD_H=p.padding[0][0], PAD_W=p.padding[1][0], DILATION_H=p.dilation[0], DILATION_W=p.dilation[1]),
            **dict(PADDED=p.padded, CHANNEL_BLOCKS=blocks_k, SPLIT=config.split, PRECISION=e.precision(p.parts.main), AHEAD=lines),
            **dict(BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, PDL=True),
        }
        assert p.row_stride is not None
        where: dict[str, Any] = dict(y_part=0, y_row=p.row_stride, y_col=p.out_strides[1])
        hook: dict[str, Any] = {**writer.arguments(), "EPILOGUE": epilogue}
        if split:
            where = dict(y_part=product((p.pixels, filters * groups)), y_row=filters * groups, y_col=1)
            hook = {**dict.fromkeys(hook, None)}
        grid = (ceildiv(p.pixels, config.block_m) * -(-filters // config.block_n), groups, config.split)
        e.launch(convolution, grid, {**common, **where, **hook}, [y], config.num_warps, config.num_stages)
        if split:
            add_parts(e, p, y, config.split, {**writer.arguments(), "EPILOGUE": epilogue})


def add_parts(e: Emission, p: Problem, parts: Value, split: int, hook: dict[str, Any]) -> None:
    """The launch that adds a split sum's parts: enough blocks for every processor, rows of a block at least 64 bytes."""
    n = int(p.output.type.shape[1])
    wanted = max(1, int(bind(p.pixels, {})) * n // (2 * PROCESSORS))
    block_n = min(_up(n), 128)
    block_m = max(1, min(16, 1 << max(0, (wanted // block_n).bit_length() - 1)))
    if block_m == 1 and wanted < block_n:
        block_n = max(32, min(block_n, _up(wanted)))
    e.launch(
        sum_parts,
        (ceildiv(p.pixels, block_m), -(-n // block_n)),
        {
            **dict(parts=parts, y=p.output, M=p.pixels, N=n, y_row=p.row_stride, y_col=p.out_strides[1], SPLIT=split),
            **dict(BLOCK_M=block_m, BLOCK_N=block_n, PDL=True),
            **hook,
        },
        writes=[p.output],
        num_warps=max(1, min(4, block_m * block_n // 128)),
    )


SHAPES = (
    # block_m, block_n, block_k, num_warps, num_stages
    (128, 256, 64, 8, 3), (256, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (256, 64, 64, 8, 4),
    (128, 64, 64, 4, 4), (128, 64, 32, 4, 5), (128, 32, 64, 4, 4), (64, 256, 64, 8, 4), (64, 128, 64, 4, 4), (64, 64, 64, 4, 5),
    (64, 32, 64, 4, 5), (32, 64, 64, 4, 5), (32, 32, 64, 4, 5), (16, 64, 64, 4, 5), (16, 32, 64, 2, 5), (64, 64, 128, 4, 3),
    (32, 32, 128, 4, 4), (32, 32, 256, 4, 3),
    (128, 128, 32, 8, 5), (128, 32, 32, 4, 5), (64, 64, 32, 4, 5), (32, 32, 32, 4, 5), (128, 64, 16, 4, 5),
    (64, 16, 16, 4, 5), (64, 32, 16, 4, 5), (16, 16, 16, 2, 5),
)  # fmt: skip
SHAPES_FP32 = ((64, 64, 32, 8, 3), (32, 32, 32, 4, 3), (64, 32, 16, 4, 3), (16, 16, 16, 4, 3))
SHAPES_TF32 = (
    (128, 256, 32, 8, 3), (128, 128, 32, 8, 4), (128, 128, 32, 4, 3), (128, 64, 32, 4, 4), (64, 128, 32, 4, 4), (64, 64, 32, 4, 5),
    (64, 64, 64, 4, 3), (128, 32, 32, 4, 4), (64, 32, 32, 4, 5), (32, 64, 32, 4, 5), (32, 32, 32, 4, 5), (32, 32, 64, 4, 4),
    (64, 32, 16, 4, 5), (32, 32, 128, 4, 3), (64, 16, 16, 4, 5), (16, 16, 16, 2, 5),
)  # fmt: skip
# Tensor cores multiply twice as many int8 at once, and at least 32.
SHAPES_INT8 = tuple((bm, bn, 2 * bk, warps, stages) for bm, bn, bk, warps, stages in SHAPES)
SPLITS = (1, 2, 3, 4, 6, 9, 12, 18)


def shapes_of(e: Emission, p: Problem) -> tuple[tuple[int, int, int, int, int], ...]:
    """(block_m, block_n, block_k, num_warps, num_stages) that are tried for operands of that dtype."""
    dtype = p.x.type.dtype
    if dtype == torch.float32:
        return SHAPES_FP32 if e.precision(p.parts.main) == "ieee" else SHAPES_TF32
    return SHAPES_INT8 if dtype == torch.int8 else SHAPES


def cost(c: ConvolutionConfig, m: int, filters: int, groups: int, steps: int, itemsize: int) -> float:
    """Roughly how many cycles an H200 takes, as `gemm_configs.cycles`: the greatest of computing, waiting and writing."""
    area, slower = c.block_m * c.block_n, itemsize / 2
    each = -(-(-(-m // c.block_m) * -(-filters // c.block_n) * groups * c.split) // PROCESSORS)
    steps_each = -(-steps // c.split)
    loaded = (c.block_m + c.block_n) * c.block_k * itemsize
    resident = min(
        SHARED_BYTES // (c.num_stages * loaded + 1024),
        REGISTERS // (area + 72 * 32 * c.num_warps),
        64 // c.num_warps,
    )
    wide = c.block_m >= 64 and c.num_warps % 4 == 0
    narrow = max(CHAIN, 10 * area / (128 * c.num_warps)) + 0.45 * (c.block_m + c.block_n)
    computing = slower * c.block_k / 16 * (18 + area / 1250 if wide else narrow)
    step = max(LATENCY / max(1, c.num_stages - 1), 95 + c.block_k / 4 + computing / 2, computing)
    writing = area * itemsize / WRITTEN_EACH
    ends = START + LATENCY + 0.9 * writing * min(max(1, resident), each)
    waiting = -(-each // max(1, resident)) * (steps_each * step + ends)
    compute = each * steps_each * max(slower * area * c.block_k / (3100 if wide else 650), loaded / 43)
    terms = (compute, waiting, each * writing)
    adding = 0.0 if c.split == 1 else 3500 + m * filters * groups * 4 * (c.split + 1) / 2800
    return max(terms) + 0.2 * sum(terms) + adding


def problem_of(e: Emission) -> Problem:
    """The node as a convolution. Raises Unsupported where no template of ours takes it."""
    parts = parts_of(e.node, "Convolution", "IntegerConvolution")
    main, output = parts.main, parts.outputs[0]
    op: Any = main.op
    if len(parts.outputs) > 1:
        raise Unsupported("the node has several outputs")
    x, weight = main.inputs[:2]
    if x.type.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.int8):
        raise Unsupported(f"a convolution of {x.type.dtype}")
    if x.type.rank not in (3, 4):
        raise Unsupported("a convolution in three dimensions")
    if e.constant(weight) is None:
        raise Unsupported("the weights are known only when the engine runs")
    if e.views[output].root is not output and output.type.shape != main.outputs[0].type.shape:
        raise Unsupported(f"the output is {output.type}, and the convolution gives {main.outputs[0].type}")
    source = source_of(parts, x)
    for value in (source, output):
        if (most := most_elements(e, value)) > 2**31 - 1:
            raise Unsupported(f"{value} may have {most} elements; offsets are 32-bit numbers")
    flat = x.type.rank == 3

    def two(given: Sequence[Any], fill: Any) -> Any:
        return (fill, given[0]) if flat else tuple(given)

    def four(given: Sequence[Dim], fill: Dim) -> Any:
        return (*given[:2], *two(given[2:], fill))

    images, _, height, width = four(x.type.shape, 1)
    shape = four(main.outputs[0].type.shape, 1)
    return Problem(
        parts, source, weight, main.inputs[2] if len(main.inputs) > 2 else None, output, images,
        channels=int(x.type.shape[1]), filters=int(weight.type.shape[0]), size=(height, width), out_size=shape[2:],
        kernel=two(weight.type.shape[2:], 1), stride=two(op.stride, 1), padding=two(op.padding, (0, 0)),
        dilation=two(op.dilation, 1), groups=op.groups,
        strides=four(e.view(source).strides, 0), out_strides=four(e.view(output).strides, 0),
    )  # fmt: skip


def source_of(parts: Parts, x: Value) -> Value:
    """The tensor that the nodes before the convolution start from; x itself where there are none."""
    producers = {v: n for n in parts.before for v in n.outputs}
    current = x
    while current in producers:
        wide = [v for v in producers[current].inputs if v.type.shape == x.type.shape]
        if not wide:
            raise Unsupported("what comes before the convolution has no operand of its shape")
        current = wide[0]
    return current


def most_elements(e: Emission, value: Value) -> int:
    """The most elements that a value may have; symbols without an upper limit count as their least."""
    ranges = e.node.op.body.ranges if isinstance(e.node.op, Fused) else {}
    least = {name: (1, None) for name in symbols_in(value.type.shape)} | dict(ranges)
    return int(bind(value.type.numel, {name: high or low for name, (low, high) in least.items()}))


def epilogue_of(e: Emission, p: Problem) -> tuple[HookWriter, Hook]:
    """What follows the sum, as `epilogue(acc, rows, cols, row_mask, col_mask, …)`: bias and the pointwise nodes after it."""
    main = p.parts.main.outputs[0]
    pixels = (0, *range(2, main.type.rank))
    writer = HookWriter(e.views, e.constant)
    writer.names[main] = "acc"
    masks = (("rows", "row_mask"), ("cols", "col_mask"))
    if p.bias is not None:
        bias = writer.load(p.bias, Space((main.type.shape[1],), (("cols", (0,)),), masks))
        writer.lines.append(f"acc = acc + {bias}")
    writer.compute(p.parts.after, Space(main.type.shape, (("rows", pixels), ("cols", (1,))), masks))
    return writer, writer.hook("epilogue", ("acc", "rows", "cols", "row_mask", "col_mask"), [writer.names[p.output]])


def by_taps(weight: Tensor, groups: int, wanted: int, block_k: int) -> Tensor:
    """(K, C, R, S) of `groups` groups as (K, R * S, channels of `wanted` groups), with channels padded to whole blocks by zeros."""
    k, c = weight.shape[:2]
    together = groups // wanted
    taps = weight.reshape(wanted, together, k // groups, c, -1).movedim(-1, 3)  # (wanted, together, K / groups, taps, C)
    wide = taps.new_zeros(wanted, together, k // groups, taps.shape[3], together, c)
    for index in range(together):
        wide[:, index, :, :, index] = taps[:, index]
    flat = wide.reshape(k, taps.shape[3], together * c)
    return torch.nn.functional.pad(flat, (0, -together * c % block_k))


def ceildiv(a: Dim, b: int) -> Dim:
    return -(-a // b) if isinstance(a, int) else floordiv(a + b - 1, b)


def _up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


TEMPLATE = ConvolutionTemplate()
