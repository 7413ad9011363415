"""Greatest and mean pooling through `kernels/pool.py`, with what follows in its registers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.kernels.pool import pool
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.tactics.parts import parts_of
from torchsmith.backends.cuda.tactics.pointwise import MULTIPROCESSORS, blocks
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, product, same
from torchsmith.ir.op import Op

MAINS = ("MaxPool", "AvgPool", "AdaptiveAvgPool")
MOST_TAPS = 169  # the kernel is unrolled over them


@dataclass(frozen=True)
class PoolConfig:
    block_p: int
    block_c: int
    num_warps: int


class PoolTemplate:
    name = "pool"
    kinds = frozenset({"pool", *MAINS})
    config_type = PoolConfig

    def configs(self, e: Emission) -> Sequence[PoolConfig]:
        self.emit(Emission(e.node, e.views, e._packed), PoolConfig(16, 16, 4))  # whether the node can be taken
        shape = parts_of(e.node, *MAINS).main.outputs[0].type.shape
        windows, channels = product((shape[0], *shape[2:])), shape[1]
        p, c = e.likely(windows, 1 << 16), e.likely(channels, 256)
        found = []
        for elements, warps in ((2048, 4), (4096, 4), (1024, 4), (4096, 8), (512, 2), (256, 1)):
            for block_c in dict.fromkeys((min(64, _up(c)), min(128, _up(c)))):
                found.append(PoolConfig(max(1, min(_up(p), elements // block_c)), block_c, warps))
        found = list(dict.fromkeys(found))
        found.sort(key=lambda f: -(-p // f.block_p) * -(-c // f.block_c) < 2 * MULTIPROCESSORS)
        return found

    def emit(self, e: Emission, config: PoolConfig) -> None:
        parts = parts_of(e.node, *MAINS)
        main = parts.main
        if len(parts.outputs) > 1 or parts.before:
            raise Unsupported("the node has several outputs, or pointwise nodes before the pooling")
        x, (output,), shape = main.inputs[0], parts.outputs, main.outputs[0].type.shape
        integers = (torch.int8,) if type(main.op).__name__ == "MaxPool" else ()
        if x.type.dtype not in (torch.float16, torch.bfloat16, torch.float32, *integers):
            raise Unsupported(f"pooling of {x.type.dtype}")
        for value in (x, output):
            if isinstance(value.type.numel, int) and value.type.numel >= 2**31:
                raise Unsupported(f"a tensor of {value.type}: its elements' places do not fit 32 bits")
        rank = len(shape) - 2
        writer = HookWriter(e.views, e.constant)
        writer.names[main.outputs[0]] = "acc"
        indices = (("rows", (0, *range(2, 2 + rank))), ("cols", (1,)))
        writer.compute(parts.after, Space(shape, indices, (("rows", "row_mask"), ("cols", "col_mask"))))
        epilogue = writer.hook("epilogue", ("acc", "rows", "cols", "row_mask", "col_mask", "mask"), [writer.names[output]])
        windows = product((shape[0], *shape[2:]))
        strides = [dict(zip("ncdhw", _five(e.view(v).strides, 0), strict=True)) for v in (x, output)]
        e.launch(
            pool,
            (product((blocks(windows, config.block_p), blocks(shape[1], config.block_c))),),
            {
                **dict(x=x, y=output, P=windows, C=shape[1]),
                **dict(zip(("D", "H", "W"), _five(x.type.shape, 1)[2:], strict=True)),
                **dict(zip(("OD", "OH", "OW"), _five(shape, 1)[2:], strict=True)),
                **{f"x_{k}": s for k, s in strides[0].items()},
                **{f"y_{k}": s for k, s in strides[1].items()},
                **writer.arguments(),
                **_windows(main.op, x.type.shape[2:], shape[2:]),
                **dict(EPILOGUE=epilogue, BLOCK_P=config.block_p, BLOCK_C=config.block_c, PDL=True),
            },
            writes=[output],
            num_warps=config.num_warps,
        )


def _windows(given: Op, size: Sequence[Dim], out: Sequence[Dim]) -> dict[str, Any]:
    """The kernel's constants. Raises Unsupported where the window is too large to unroll, or not known."""
    op: Any = given
    rank = len(size)
    adaptive = type(op).__name__ == "AdaptiveAvgPool"
    if adaptive:
        kernel = tuple(_widest(n, o) for n, o in zip(size, out, strict=True))
        stride = padding = dilation = (0,) * rank
    else:
        kernel, stride, padding = op.kernel, op.stride, op.padding
        dilation = getattr(op, "dilation", (1,) * rank)
    if math.prod(kernel) > MOST_TAPS:
        raise Unsupported(f"pooling over windows of {math.prod(kernel)} elements; {MOST_TAPS} are the most")
    found: dict[str, Any] = {
        **dict(MAX=type(op).__name__ == "MaxPool", ADAPTIVE=adaptive),
        **dict(COUNT_PAD=bool(getattr(op, "count_include_pad", False)), DIVISOR=int(getattr(op, "divisor", 0))),
    }
    for letter, numbers, missing in (("K", kernel, 1), ("S", stride, 1), ("P", padding, 0), ("L", dilation or (1,), 1)):
        padded = (*[missing] * (3 - rank), *numbers)
        found.update(zip((f"{letter}D", f"{letter}H", f"{letter}W"), (int(n) for n in padded), strict=True))
    if adaptive:
        found.update(LD=1, LH=1, LW=1)
    return found


def _widest(size: Dim, out: Dim) -> int:
    if same(size, out):
        return 1
    if not isinstance(size, int) or not isinstance(out, int):
        raise Unsupported(f"adaptive pooling of {size} elements to {out}; both must be known")
    return max(-(-(o + 1) * size // out) - o * size // out for o in range(out))


def _five(sizes: Sequence[Dim], missing: Dim) -> tuple[Dim, ...]:
    """(N, C, D, H, W) of something with fewer spatial dimensions."""
    return (*sizes[:2], *[missing] * (5 - len(sizes)), *sizes[2:])


def _up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


TEMPLATE = PoolTemplate()
