"""Ops that look at rows of elements (norms, softmax, reductions) as a matrix, and the hooks of their kernels.

Rows count the dimensions that are kept, columns those that are summed over. Every operand has its own strides, so that rows
may be the channels of a channels-last picture as well as the last dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.parts import Parts
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, floordiv, product, same
from torchsmith.ir.graph import Node, Value

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MOST_OFFSET = 2**31 - 1  # kernels count elements in 32 bits
MASKS = (("rows", "row_mask"), ("cols", "col_mask"))
HOOK = ("rows", "cols", "row_mask", "col_mask", "mask")  # what the kernels give their hooks first
ANY_SIZE = 64  # stands for a size that is known only at run time, where strides are ordered
USUAL_ROWS = 1024  # what guesses take an unknown number for


@dataclass(frozen=True)
class RowConfig:
    """block_r rows by block_c columns at a time. loop: whether rows are longer than block_c, and are walked through."""

    block_r: int
    block_c: int
    num_warps: int
    loop: bool = False


@dataclass(frozen=True)
class Rows:
    """kept, reduced: dimensions of the main op's first input, those with the longest strides first.

    groups: of a group norm, where rows are (N, groups) and columns the group's channels and pixels; 0 for others.
    across: whether neighbours in memory lie in different rows.
    """

    parts: Parts
    kept: tuple[int, ...]
    reduced: tuple[int, ...]
    groups: int
    across: bool

    @property
    def x(self) -> Value:
        return self.parts.main.inputs[0]

    @property
    def rows(self) -> Dim:
        shape = self.x.type.shape
        return product([shape[d] for d in self.kept]) if not self.groups else product([shape[0], self.groups])

    @property
    def cols(self) -> Dim:
        shape = self.x.type.shape
        count = product([shape[d] for d in self.reduced])
        return count if not self.groups else floordiv(count, self.groups)

    def space(self) -> Space:
        """The main op's input, and what has its shape."""
        if self.groups:
            return Space(self.x.type.shape, (("n", (0,)), ("c", (1,)), ("s", tuple(range(2, self.x.type.rank)))))
        found = (("rows", self.kept), ("cols", self.reduced))
        return Space(self.x.type.shape, tuple((text, dims) for text, dims in found if dims), MASKS)


def rows_of(e: Emission, parts: Parts, reduced: Sequence[int], groups: int = 0) -> Rows:
    """The node as rows. Raises Unsupported for dtypes and sizes that the kernels do not take."""
    x = parts.main.inputs[0]
    producers = {v for n in parts.before for v in n.outputs}
    wide = [v for n in (*parts.before, parts.main) for v in n.inputs if v not in producers and _same_shape(v, x)]
    strides = e.view(wide[0]).strides if wide else e.view(parts.outputs[0]).strides
    if len(strides) != x.type.rank:
        strides = tuple(range(x.type.rank, 0, -1))
    by_stride = sorted(range(x.type.rank), key=lambda d: -number(strides[d]))
    real = [d for d in by_stride if not same(x.type.shape[d], 1) and not same(strides[d], 0)]
    kept = tuple(d for d in by_stride if d not in reduced)
    if any(type(n.op).__name__ == "Gather" for n in parts.before):
        kept = tuple(sorted(kept))  # what an index counts
    check_offsets([*parts.outputs, x, *wide])
    innermost = real[-1] if real else None
    across = not groups and innermost is not None and innermost not in reduced
    return Rows(parts, kept, tuple(d for d in by_stride if d in reduced), groups, across)


def check_offsets(values: Sequence[Value]) -> None:
    for v in values:
        if isinstance(v.type.numel, int) and v.type.numel > MOST_OFFSET:
            raise Unsupported(f"{v.type} has more elements than 32-bit offsets reach")


def check_floats(values: Sequence[Value]) -> None:
    for v in values:
        if v.type.dtype not in FLOATS:
            raise Unsupported(f"a norm, softmax or attention of {v.type.dtype}")


def number(size: Dim) -> int:
    """A size as a number: symbols as if they were ANY_SIZE."""
    return size if isinstance(size, int) else int(size.xreplace({s: ANY_SIZE for s in size.free_symbols}))


def blocks_of(size: Dim, block: int) -> Dim:
    return -(-size // block) if isinstance(size, int) else floordiv(size + block - 1, block)


def up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()


def _same_shape(a: Value, b: Value) -> bool:
    return a.type.rank == b.type.rank and all(map(same, a.type.shape, b.type.shape))


@dataclass
class RowHooks:
    """Writes the hooks of a row kernel, which share its parameters e0.. and z0...

    Hooks see `rows` and `row_mask` (R, 1), `cols` and `col_mask` (1, C), and `mask` (R, C).
    """

    e: Emission
    p: Rows
    first: Callable[[HookWriter, Space], None] | None = None  # adds lines that what comes before the main op starts from
    most: int = 1  # outputs that the kernel writes of what the main op gives
    main: HookWriter = field(init=False)

    def __post_init__(self) -> None:
        self.main = HookWriter(self.e.views, self.e.constant)

    def writer(self) -> HookWriter:
        """A writer whose text may name an element's place: of a group norm, picture n, channel c, pixel s."""
        writer = HookWriter(self.e.views, self.e.constant, self.main.operands, self.main.sizes)
        if self.p.groups:
            shape = self.p.x.type.shape
            each, pixels = int(shape[1]) // self.p.groups, writer.size(product(shape[2:]))
            last = self.p.reduced[-1] == 1 and each > 1
            inner, s = (f"cols % {each}", f"cols // {each}") if last else (f"cols // {pixels}", f"cols % {pixels}")
            writer.lines += [f"n = rows // {self.p.groups}", f"c = (rows % {self.p.groups}) * {each} + {inner}", f"s = {s}"]
        return writer

    def load(self) -> Hook:
        """(rows, cols, ...) to the main op's input, and what else the nodes before it give that is an output."""
        writer = self.writer()
        if self.first is not None:
            self.first(writer, self.p.space())
        self._before(writer, self.p.parts.before)
        x = writer.load(self.p.x, self.p.space())
        extra = self.extra()
        returns = [x, writer.names[extra] if extra else "0"]
        return writer.hook("load", HOOK, returns)

    def extra(self) -> Value | None:
        """The output that comes before the main op, if there is one."""
        made = {v for n in self.p.parts.before for v in n.outputs}
        found = [v for v in self.p.parts.outputs if v in made]
        if len(found) > 1 or not 1 <= len(self.p.parts.outputs) - len(found) <= self.most:
            raise Unsupported("the node has more outputs than what its main op takes and what it gives")
        return found[0] if found else None

    def output(self) -> Value:
        extra = self.extra()
        return next(v for v in self.p.parts.outputs if v is not extra)

    def also(self) -> Value | None:
        """The second of the outputs that the main op gives, if there is one."""
        extra = self.extra()
        return next((v for v in self.p.parts.outputs if v is not extra and v is not self.output()), None)

    def epilogue(self, two: bool = False) -> Hook:
        """(acc, x, rows, cols, ...) to the output: what follows the main op. two: gives the second output too, or 0."""
        writer = self.writer()
        writer.names.update({self.p.parts.main.outputs[0]: "acc", self.p.x: "x"})
        self._before(writer, self._needed_again())
        writer.compute(self.p.parts.after, self.p.space())
        parameters = ("acc", "x", *HOOK)
        also = self.also()
        second = [writer.names[also] if also else "0"] if two else []
        return writer.hook("epilogue", parameters, [writer.names[self.output()], *second])

    def place(self, value: Value) -> Hook:
        """(rows, cols) to the element's offset in an output of the main op's shape."""
        writer = self.writer()
        return _offset(writer, writer.offset(value, self.p.space()))

    def _needed_again(self) -> list[Node]:
        """Nodes before the main op whose results what follows it takes too."""
        wanted = {v for n in self.p.parts.after for v in n.inputs} - {self.p.x}
        found: list[Node] = []
        for node in reversed(self.p.parts.before):
            if wanted.intersection(node.outputs):
                found.insert(0, node)
                wanted.update(v for v in node.inputs if v is not self.p.x)
        return found

    def _before(self, writer: HookWriter, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if type(node.op).__name__ == "Gather":
                self._gather(writer, node)
            else:
                writer.compute([node], self.p.space())

    def _gather(self, writer: HookWriter, node: Node) -> None:
        """Rows of a table by index: the index is loaded once a row."""
        table, index = node.inputs
        if node.op.dim != 0 or self.p.groups or self.p.kept != tuple(range(index.type.rank)):  # type: ignore[attr-defined]
            raise Unsupported("rows are gathered by an index that counts other dimensions than the kernel's rows")
        row = writer.load(index, Space(index.type.shape, (("rows", self.p.kept),), MASKS))
        rest = tuple(d - index.type.rank + 1 for d in self.p.reduced)
        name = writer.load(table, Space(table.type.shape, ((row, (0,)), ("cols", rest)), ((row, "row_mask"), *MASKS)))
        writer.names[node.outputs[0]] = name
        del writer.names[table]  # another index may look into it too


def _offset(writer: HookWriter, text: str) -> Hook:
    return writer.hook("place", ("rows", "cols"), [text])


def row_configs(e: Emission, p: Rows, elements: int, widest: int) -> list[RowConfig]:
    """Configurations, the best guess first. elements: of a block, about; widest: the longest row that a block holds at once."""
    if not isinstance(p.cols, int):
        return [RowConfig(1, 2048, 8, True), RowConfig(1, 1024, 4, True), RowConfig(1, 4096, 8, True)]
    rows, block = e.likely(p.rows, USUAL_ROWS), up(p.cols)
    if block > widest:
        size = (1, 4096) if not p.across else (32, 64)
        found = [RowConfig(*size, 8, True), RowConfig(size[0], size[1] * 2, 16, True), RowConfig(size[0], size[1] // 2, 4, True)]
        return found
    limit = up(rows)
    enough = max(1, min(limit, up(-(-rows // (132 * 4)))))  # rows of a block that leaves every processor some blocks
    most = max(1, min(limit, elements // block))
    fit = max(1, min(enough, most))
    if p.across:
        least = min(limit, 16)
        fit = max(least, fit)
    usual = ((fit, 8), (fit, 16), (fit, 4), (fit * 2, 8), (fit, 32), (fit * 2, 16))
    shapes = (*usual, (fit * 4, 32), (fit * 4, 16), (max(1, fit // 2), 8))
    found = [RowConfig(r, block, _warps(r * block, each)) for r, each in shapes if r * block <= 16384 or r == fit]
    return list(dict.fromkeys(found))


def _warps(elements: int, each: int) -> int:
    """Warps, for about so many elements a thread."""
    return max(1, min(16, elements // (32 * each)))
