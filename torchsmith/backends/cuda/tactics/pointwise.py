"""Pointwise programs, and all that moves elements about, through `kernels/pointwise.py`: one kernel each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.expressions import WRITERS
from torchsmith.backends.cuda.fuse.fused import Fused
from torchsmith.backends.cuda.kernels.pointwise import pointwise, tiled
from torchsmith.backends.cuda.layout import View, memory_order
from torchsmith.backends.cuda.program import READS, HookWriter, Space
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, Shape, floordiv, product, same
from torchsmith.ir.graph import Node, Value

MULTIPROCESSORS = 132


@dataclass(frozen=True)
class PointwiseConfig:
    """block_r: 0 for a flat run over blocks of block_c elements, else rows of a tile."""

    block_r: int
    block_c: int
    num_warps: int


@dataclass(frozen=True)
class Loop:
    """What is run over. shape: of the outputs; order: its dimensions as they lie in the outputs' memory, outermost first.

    rows, cols: dimensions that a tile's rows and columns count, where an operand lies in another order; else no rows.
    """

    shape: Shape
    order: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def outer(self) -> tuple[int, ...]:
        return tuple(d for d in self.order if d not in self.rows and d not in self.cols)

    def size(self, dims: Sequence[int]) -> Dim:
        return product([self.shape[d] for d in dims])


class PointwiseTemplate:
    name = "pointwise"
    kinds = frozenset({"pointwise", *WRITERS, *READS})
    config_type = PointwiseConfig

    def configs(self, e: Emission) -> Sequence[PointwiseConfig]:
        loop = loop_of(e.node, e.views)
        self.emit(Emission(e.node, e.views, e._packed), PointwiseConfig(0, 128, 4))  # whether the body can be written
        return configs_of(e, loop, max(v.type.dtype.itemsize for v in e.node.outputs))

    def emit(self, e: Emission, config: PointwiseConfig) -> None:
        emit_loop(e, loop_of(e.node, e.views), nodes_of(e.node), {v: e.view(v) for v in e.node.outputs}, config)


def configs_of(e: Emission, loop: Loop, itemsize: int) -> list[PointwiseConfig]:
    """Wide loads first, and as many blocks as keep every multiprocessor busy."""
    n = e.likely(loop.size(loop.order), 1 << 20)
    wide = 16 // max(2, min(itemsize, 8))
    flat = [
        PointwiseConfig(0, threads * each, threads // 32)
        for threads, each in ((128, 2 * wide), (128, wide), (256, 2 * wide), (256, 4 * wide), (64, wide), (128, max(1, wide // 2)))
    ]
    # the largest block that still gives every multiprocessor two; else the most blocks
    flat.sort(key=lambda c: (-(-n // c.block_c) < 2 * MULTIPROCESSORS, c.block_c if n < 2 * MULTIPROCESSORS * c.block_c else 0))
    if not loop.rows:
        return flat
    r, c = e.likely(loop.size(loop.rows), 1024), e.likely(loop.size(loop.cols), 1024)
    tiles = [
        PointwiseConfig(min(br, _up(r)), min(bc, _up(c)), warps)
        for br, bc, warps in ((64, 64, 4), (32, 32, 4), (128, 64, 8), (64, 128, 8), (32, 128, 4), (128, 32, 4))
    ]
    if min(r, c) < 16:  # long on the other side
        tiles.insert(0, PointwiseConfig(min(_up(r), 2048 // min(_up(c), 16)), min(_up(c), 2048 // min(_up(r), 16)), 4))
    found = list(dict.fromkeys(tiles))

    def busy(t: PointwiseConfig) -> bool:
        return -(-r // t.block_r) * -(-c // t.block_c) * max(1, n // (r * c)) >= MULTIPROCESSORS

    found.sort(key=lambda t: not busy(t))
    return [*found, flat[0]] if n >= 1 << 13 else [flat[0], *found]


def _up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def nodes_of(node: Node) -> tuple[Node, ...]:
    return node.op.body.nodes if isinstance(node.op, Fused) else (node,)


def loop_of(node: Node, views: Mapping[Value, View]) -> Loop:
    """Raises Unsupported where the outputs are no one loop, or an offset may not fit 32 bits."""
    first = node.outputs[0]
    if any(v.type.rank != first.type.rank or not all(map(same, v.type.shape, first.type.shape)) for v in node.outputs):
        raise Unsupported("the outputs have several shapes")
    inside = {v for n in nodes_of(node) for v in n.outputs}
    operands = {v for n in nodes_of(node) for v in n.inputs if v not in inside}
    loop = loop_over(first.type.shape, views[first].strides, [(v.type.shape, views[v].strides) for v in operands])
    if not loop.rows and any(type(n.op).__name__ == "Resize" for n in nodes_of(node)) and len(loop.order) > 1:
        # positions are computed for rows alone, and the channels beside each other are loaded together
        return Loop(loop.shape, loop.order, loop.order[:-1], loop.order[-1:])
    return loop


def loop_over(shape: Shape, strides: Shape, operands: Sequence[tuple[Shape, Shape]]) -> Loop:
    """strides: the output's. operands: their shapes and strides; those of the output's rank may ask for tiles."""
    for sizes, steps in ((shape, strides), *operands):
        reach = [(n - 1) * s for n, s in zip(sizes, steps, strict=True) if isinstance(n, int) and isinstance(s, int)]
        if sum(reach) >= 2**31:
            raise Unsupported(f"a tensor of {tuple(sizes)}: its elements' places do not fit 32 bits")
    order = memory_order(shape, strides)
    real = [d for d in order if not same(shape[d], 1)]
    for sizes, steps in operands:
        if len(sizes) != len(shape) or not real:
            continue
        own = [d for d in memory_order(sizes, steps) if not same(sizes[d], 1) and not same(steps[d], 0)]
        if not own or own[-1] == real[-1] or same(steps[own[-1]], steps[real[-1]]) or same(sizes[real[-1]], 1):
            continue
        if same(steps[real[-1]], 0):
            continue
        rows = _together(real, own[-1], shape, [steps])
        cols = _together([d for d in real if d not in rows], real[-1], shape, [strides])
        return Loop(shape, tuple(order), rows, cols)
    return Loop(shape, tuple(order), (), ())


def _together(order: Sequence[int], last: int, shape: Shape, strides: Sequence[Shape]) -> tuple[int, ...]:
    """The dimensions before `last` in the order, and itself, that lie in one sweep."""
    found = [last]
    for d in reversed(order[: order.index(last)]):
        if not all(same(s[d], s[found[0]] * shape[found[0]]) for s in strides):
            break
        found.insert(0, d)
    return tuple(found)


def emit_loop(
    e: Emission,
    loop: Loop,
    nodes: Sequence[Node],
    stores: Mapping[Value, View],
    config: PointwiseConfig,
    into: Mapping[Value, Value] | None = None,
) -> None:
    """Launch the nodes over the loop.

    stores: values of the loop's shape, and where their elements are to be. into: the values whose memory that is, where it is
    another's.
    """
    writer = HookWriter(e.views, e.constant)
    if config.block_r:
        indices = [(t, d) for t, d in (("outer", loop.outer), ("rows", loop.rows), ("cols", loop.cols)) if d]
        parameters: tuple[str, ...] = ("outer", "rows", "cols", "row_mask", "col_mask", "mask")
        space = Space(loop.shape, tuple(indices), (("outer", ""), ("rows", "row_mask"), ("cols", "col_mask")))
    else:
        parameters, space = ("index", "mask"), Space(loop.shape, (("index", loop.order),))
    writer.compute(nodes, space)
    targets = {v: (into or {}).get(v, v) for v in stores}
    for value, view in stores.items():
        name = writer.load(value, space)
        place = writer.address(loop.shape, view.strides, space)
        place = "index * 0" if place == "0" else place  # a block of one element
        writer.lines.append(f"tl.store({writer.operand(targets[value])} + {place}, {name}, mask=mask)")
    launch_body(e, loop, writer, parameters, list(targets.values()), config)


def launch_body(
    e: Emission, loop: Loop, writer: HookWriter, parameters: Sequence[str], writes: Sequence[Value], config: PointwiseConfig
) -> None:
    body = writer.hook("body", parameters, [])
    if config.block_r:
        r, c = loop.size(loop.rows), loop.size(loop.cols)
        grid = product((loop.size(loop.outer), blocks(r, config.block_r), blocks(c, config.block_c)))
        sizes, block = {"R": r, "C": c}, {"BLOCK_R": config.block_r, "BLOCK_C": config.block_c}
    else:
        n = loop.size(loop.order)
        grid, sizes, block = blocks(n, config.block_c), {"N": n}, {"BLOCK": config.block_c}
    e.launch(
        tiled if config.block_r else pointwise,
        (grid,),
        {**sizes, **writer.arguments(), "BODY": body, **block, "PDL": True},
        writes=writes,
        num_warps=config.num_warps,
    )


def blocks(size: Dim, block: int) -> Dim:
    return floordiv(size + (block - 1), block)


TEMPLATE = PointwiseTemplate()
