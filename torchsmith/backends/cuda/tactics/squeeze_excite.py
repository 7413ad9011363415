"""Squeeze-and-excite through `kernels/squeeze_excite.py`: two kernels, of which the second is small."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.kernels.squeeze_excite import excite, squeeze
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.tactics.depthwise import (
    MAX_ELEMENTS,
    SMS,
    USUAL_BATCH,
    USUAL_SHARES,
    USUAL_SIDE,
    ceildiv,
    ceildiv_int,
    up,
)
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, product
from torchsmith.ir.graph import Node, Value

MAX_UNITS = 1024  # of the hidden layer: each block holds all of them


@dataclass(frozen=True)
class ExciteConfig:
    """A block makes block_c channels of the gates of block_n pictures."""

    block_n: int
    block_c: int
    num_warps: int


@dataclass(frozen=True)
class SqueezeExciteConfig:
    """block_p × block_c elements are added up at a time; splits: blocks over the pixels of a picture. excite_*: `ExciteConfig`."""

    block_p: int
    block_c: int
    splits: int
    num_warps: int
    excite_n: int
    excite_c: int
    excite_warps: int


@dataclass(frozen=True)
class Layers:
    """The two layers. first: (S, C), second: (C, S) with S rounded up to a multiple of eight, the rest zeros.

    activation, gating: the pointwise nodes after each. hidden: the first layer's output. gate: the result.
    """

    mean: Node
    first: Value
    first_bias: Value | None
    activation: tuple[Node, ...]
    hidden: Value
    second: Value
    second_bias: Value | None
    gating: tuple[Node, ...]
    excited: Value
    gate: Value

    @property
    def units(self) -> int:
        return int(self.first.type.shape[0])

    @property
    def channels(self) -> int:
        return int(self.first.type.shape[1])

    @property
    def x(self) -> Value:
        return self.mean.inputs[0]


class SqueezeExciteTemplate:
    name = "squeeze_excite"
    kinds = frozenset({"squeeze_excite"})
    config_type = SqueezeExciteConfig

    def configs(self, e: Emission) -> Sequence[SqueezeExciteConfig]:
        layers = layers_of(e, _body(e))
        found = _configs(e, layers)
        self.emit(Emission(e.node, e.views, e._packed), found[0])  # whether the hooks can be written
        return found

    def emit(self, e: Emission, config: SqueezeExciteConfig) -> None:
        c, layers = config, layers_of(e, _body(e))
        images, channels, rows, columns = layers.x.type.shape
        blocks = ceildiv_int(layers.channels, c.block_c) * c.splits
        partial = e.temporary((images, blocks, layers.units), torch.float32, "squeezed")
        strides = e.view(layers.x).strides
        e.launch(
            squeeze,
            (product((images, blocks)),),
            {
                **dict(x=layers.x, w=layers.first, partial=partial, C=channels, W=columns, PIXELS=product((rows, columns))),
                **dict(SPLITS=c.splits, S=layers.units, **dict(zip(("x_n", "x_c", "x_h", "x_w"), strides, strict=True))),
                **dict(BLOCK_P=c.block_p, BLOCK_C=c.block_c, PDL=True),
                **dict(BLOCK_S=max(1, min(up(layers.units), c.num_warps * 1024 // c.block_c))),
            },
            writes=[partial],
            num_warps=c.num_warps,
        )
        emit_excite(e, layers, partial, product((rows, columns)), ExciteConfig(c.excite_n, c.excite_c, c.excite_warps))


def _body(e: Emission) -> tuple[Node, ...]:
    assert isinstance(e.node.op, Fused), e.node
    return e.node.op.body.nodes


def layers_of(e: Emission, nodes: Sequence[Node]) -> Layers:
    """The layers among the nodes, which end with them. Raises Unsupported where they are too large or their dtype is another."""
    start = next(i for i, n in enumerate(nodes) if type(n.op).__name__ == "Reduce")
    first, second = (i for i, n in enumerate(nodes) if type(n.op).__name__ == "Convolution" and i > start)
    mean, one, two = nodes[start], nodes[first], nodes[second]
    x, units = mean.inputs[0], int(one.inputs[1].type.shape[0])
    if x.type.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise Unsupported(f"squeeze-and-excite of {x.type.dtype}")
    if units > MAX_UNITS:
        raise Unsupported(f"squeeze-and-excite with {units} hidden units; it takes up to {MAX_UNITS}")
    if isinstance(x.type.numel, int) and x.type.numel >= MAX_ELEMENTS:
        raise Unsupported(f"squeeze-and-excite of {x.type}; it takes fewer than {MAX_ELEMENTS} elements")
    extra = -units % 8
    pad = torch.nn.functional.pad
    biases = [n.inputs[2] if len(n.inputs) > 2 else None for n in (one, two)]
    return Layers(
        mean,
        e.packed(one.inputs[1], "squeeze", lambda t: pad(t.flatten(1), (0, 0, 0, extra))),
        None if biases[0] is None else e.packed(biases[0], "padded to 8", lambda t: pad(t, (0, extra))),
        tuple(nodes[first + 1 : second]),
        one.outputs[0],
        e.packed(two.inputs[1], "excite", lambda t: pad(t.flatten(1), (0, extra))),
        biases[1],
        tuple(nodes[second + 1 :]),
        two.outputs[0],
        nodes[-1].outputs[0],
    )  # fmt: skip


def emit_excite(e: Emission, layers: Layers, partial: Value, pixels: Dim, c: ExciteConfig) -> None:
    """Add the kernel that makes the gate of the first layer's shares. partial: (pictures, shares, units)."""
    activation = HookWriter(e.views, e.constant)
    names = ("x", "images", "columns", "mask")
    hidden_space = Space(layers.hidden.type.shape, (("images", (0,)), ("columns", (1,))))
    activation.names[layers.hidden] = "x"
    activation.compute(layers.activation, hidden_space)
    last = layers.activation[-1].outputs[0] if layers.activation else layers.hidden
    gating = HookWriter(e.views, e.constant, activation.operands, activation.sizes)
    gating.names[layers.excited] = "x"
    gating.compute(layers.gating, Space(layers.excited.type.shape, hidden_space.indices))
    images, rows = partial.type.shape[:2]
    g_n, g_c = e.view(layers.gate).strides[:2]
    known = rows if isinstance(rows, int) else USUAL_SHARES
    # at most 64 float32 a thread at once
    block_s = max(up(layers.units), 16 if c.block_n >= 16 else 1)  # tensor cores multiply at least 16
    block_r = max(1, min(up(known), c.num_warps * 2048 // (block_s * c.block_n)))
    e.launch(
        excite,
        (ceildiv_int(layers.channels, c.block_c), ceildiv(images, c.block_n)),
        {
            **dict(partial=partial, bias=layers.first_bias, w=layers.second, w_bias=layers.second_bias, gate=layers.gate),
            **dict(N=images, C=layers.channels, R=rows, S=layers.units, PIXELS=pixels, g_n=g_n, g_c=g_c),
            **gating.arguments(),
            **dict(ACTIVATION=activation.hook("activation", names, [activation.names[last]])),
            **dict(GATE=gating.hook("gate", names, [gating.names[layers.gate]])),
            **dict(BLOCK_N=c.block_n, BLOCK_R=block_r, BLOCK_S=block_s, BLOCK_C=c.block_c, PDL=True),
        },
        writes=[layers.gate],
        num_warps=c.num_warps,
    )


# ---- guesses --------------------------------------------------------------------------------------------------------------


def excite_configs(images: int, channels: int, units: int, shares: int) -> list[ExciteConfig]:
    """The best guess first. shares: how many rows are added up for a picture."""
    found = []
    for block_n in (1, 2, 4):
        for block_c in (8, 16, 32, 64, 128, 256):
            for num_warps in (2, 4, 8):
                work = block_n * block_c * up(units)
                small = block_n <= up(images) and block_c <= up(channels)
                if small and work <= num_warps * 32 * 64 and block_c * up(units) <= num_warps * 32 * 64:
                    found.append(ExciteConfig(block_n, block_c, num_warps))
    if not found:
        return [ExciteConfig(1, max(1, 8 * 32 * 64 // up(units)), 8)]

    def cycles(c: ExciteConfig) -> float:
        each = -(-(ceildiv_int(channels, c.block_c) * ceildiv_int(images, c.block_n)) // SMS)
        loaded = (c.block_n * shares * 4 + c.block_c * 2) * units / 32  # at 32 bytes a cycle
        lanes = 32 * c.num_warps
        computed = (c.block_n * shares + c.block_n * c.block_c * 2) * up(units) / lanes * 3 + 200
        resident = min(each, 64 // c.num_warps)
        return each * (loaded + computed * c.num_warps / max(4, c.num_warps)) + -(-each // resident) * (1200 + computed)

    ranked = sorted(found, key=lambda c: (cycles(c), c.num_warps))
    varied = {(c.block_n, c.block_c): c for c in reversed(ranked)}  # of each size the best number of warps
    # many pictures at once through tensor cores, for one block reads the shares of its pictures for all of its channels
    sizes = [(64, 4), (128, 4)] if up(units) <= 128 else [(32, 8), (64, 8)]
    many = [ExciteConfig(16, *c) for c in sizes] if images >= 64 and 32 <= up(units) <= 256 else []
    return [*many, *sorted(varied.values(), key=ranked.index)][:6]


def _configs(e: Emission, layers: Layers) -> list[SqueezeExciteConfig]:
    shape, itemsize = layers.x.type.shape, layers.x.type.dtype.itemsize
    images = e.likely(shape[0], USUAL_BATCH)
    pixels = e.likely(product(shape[2:]), USUAL_SIDE**2)
    ranked: list[tuple[float, SqueezeExciteConfig]] = []
    for block_c, num_warps, vectors, splits in itertools.product((16, 32, 64, 128), (4, 8), (1, 4), (1, 2, 4, 8, 16, 32)):
        block_p = num_warps * 32 * (16 // itemsize) * vectors // block_c
        too_wide = block_c > 16 and block_c >= 2 * up(layers.channels)
        if too_wide or (vectors > 1 and block_p >= 2 * pixels) or (splits > 1 and (splits - 1) * block_p >= pixels):
            continue
        shares = ceildiv_int(layers.channels, block_c) * splits
        each = -(-(shares * images) // SMS)
        steps = -(-pixels // (splits * block_p))
        moved = each * (steps * block_p * block_c * itemsize + layers.units * (block_c * 2 + 8)) / 32  # at 32 bytes a cycle
        cost = moved + steps * 600 * -(-each * num_warps // 48) + shares * layers.units * 4 / 32
        best, *_ = excite_configs(images, layers.channels, layers.units, shares)
        config = SqueezeExciteConfig(block_p, block_c, splits, num_warps, best.block_n, best.block_c, best.num_warps)
        ranked.append((cost, config))
    return [config for _, config in sorted(ranked, key=lambda r: r[0])[:10]]


TEMPLATE = SqueezeExciteTemplate()
