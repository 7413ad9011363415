"""What a linear layer, a 1×1 convolution or a batched product is as a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from torchsmith.backends.cuda.emission import Emission
from torchsmith.backends.cuda.float8 import FLOAT8
from torchsmith.backends.cuda.program import HookWriter, Space
from torchsmith.backends.cuda.steps import Hook
from torchsmith.backends.cuda.tactics.convolution import most_elements
from torchsmith.backends.cuda.tactics.parts import Parts, parts_of
from torchsmith.errors import Unsupported
from torchsmith.ir.dim import Dim, Shape, product, same, simplify
from torchsmith.ir.graph import Value

MAINS = ("Linear", "MatMul", "Convolution", "IntegerLinear", "IntegerConvolution", "Float8Linear")
FACTORS = (torch.float16, torch.bfloat16, torch.float32, torch.int8, FLOAT8)


@dataclass(frozen=True)
class Rows:
    """Rows that count one dimension, or two that are not one: inner is then the inner one's size."""

    stride: Dim
    outer: Dim = 0
    inner: int | None = None


@dataclass(frozen=True)
class Problem:
    """The product as a batch of (M, K) by (N, K): strides are (batch, row, column) of B as (N, K), and of C.

    row_dims, col_dim, batch_dims: the dimensions of the main op's output that rows, columns and the batch count. a_dims: of
    its first input, those that the batch, the rows and K count. constant: whether B is known at build time.
    precision: of float32 operands, see `Emission.precision`; of float8 ones how they are summed up, see `kernels/common.py`.
    """

    parts: Parts
    a: Value
    b: Value
    bias: Value | None
    m: Dim
    n: int
    k: int
    batch: Dim
    a_batch: Dim
    a_rows: Rows
    a_col: Dim
    b_strides: tuple[Dim, Dim, Dim]
    c_strides: tuple[Dim, Dim, Dim]
    row_dims: tuple[int, ...]
    col_dim: int
    batch_dims: tuple[int, ...]
    a_dims: tuple[tuple[int, ...], tuple[int, ...], int]
    constant: bool
    precision: str = "ieee"

    @property
    def main(self) -> Value:
        return self.parts.main.outputs[0]

    @property
    def output(self) -> Value:
        return self.parts.outputs[0]


def problem_of(e: Emission, parts: Parts | None = None) -> Problem:
    """The node as a matrix product. Raises Unsupported where it is none, or where its operands' strides do not allow it."""
    parts = parts or parts_of(e.node, *MAINS)
    x = parts.main.inputs[0]
    if len(parts.outputs) > 1:
        raise Unsupported("the node has several outputs")
    if x.type.dtype not in FACTORS:
        raise Unsupported(f"a product of {x.type.dtype}")
    kinds = {"MatMul": _matmul, "Linear": _linear, "IntegerLinear": _linear, "Float8Linear": _linear}
    made = kinds.get(type(parts.main.op).__name__, _convolution)(e, parts)
    for value in (made.a, made.b, made.output):
        if (most := most_elements(e, value)) > 2**31 - 1:
            raise Unsupported(f"{value} may have {most} elements; offsets are 32-bit numbers")
    if isinstance(made.batch, int) and made.batch > 65535:
        raise Unsupported(f"a batch of {made.batch} products; one launch takes 65535")
    return replace(made, precision="fast" if x.type.dtype == FLOAT8 else e.precision(parts.main))


def _linear(e: Emission, parts: Parts) -> Problem:
    x, w = parts.main.inputs[:2]
    last = x.type.rank - 1
    return _rows_by_columns(e, parts, w, tuple(range(last)), tuple(x.type.shape[:last]), last, last)


def _convolution(e: Emission, parts: Parts) -> Problem:
    w, op, shape = parts.main.inputs[1], parts.main.op, parts.main.outputs[0].type.shape
    pointwise = op.groups == 1 and set(w.type.shape[2:]) == {1} and not any(map(any, op.padding))  # type: ignore[attr-defined]
    if not pointwise:
        raise Unsupported("the convolution is not 1×1 with no padding and one group")
    if parts.before and set(op.stride) != {1}:  # type: ignore[attr-defined]
        raise Unsupported("what comes before a strided convolution has other rows")
    b = e.packed(w, "matrix", lambda t: t.flatten(1))
    rows = (0, *range(2, len(shape)))
    steps = (1, *op.stride)  # type: ignore[attr-defined]
    try:
        return _rows_by_columns(e, parts, b, rows, tuple(shape[d] for d in rows), 1, 1, steps)
    except Unsupported:  # pictures whose pixels do not follow each other: one product each
        return _rows_by_columns(e, parts, b, rows[1:], tuple(shape[d] for d in rows[1:]), 1, 1, steps[1:], batch=(0,))


def _rows_by_columns(
    e: Emission,
    parts: Parts,
    b: Value,
    dims: tuple[int, ...],
    sizes: Shape,
    a_col: int,
    c_col: int,
    steps: Sequence[int] = (),
    batch: tuple[int, ...] = (),
) -> Problem:
    """Rows are those dimensions of x and of the output, `steps` apart in x; B is a matrix (N, K)."""
    main = parts.main
    x, shape = main.inputs[0], main.outputs[0].type.shape
    a = source(parts, x)
    given, c_given, b_given = e.view(a).strides, e.view(parts.outputs[0]).strides, e.view(b).strides
    k, n = known(x.type.shape[a_col], shape[c_col])
    strided = [simplify(given[d] * s) for d, s in zip(dims, steps or [1] * len(dims), strict=True)]
    c_rows = one([shape[d] for d in batch], [c_given[d] for d in batch]), one(sizes, [c_given[d] for d in dims])
    return Problem(
        parts=parts,
        a=a,
        b=b,
        bias=main.inputs[2] if len(main.inputs) > 2 else None,
        m=product(sizes),
        n=n,
        k=k,
        batch=product([shape[d] for d in batch]),
        a_batch=one([shape[d] for d in batch], [given[d] for d in batch]),
        a_rows=rows_of(sizes, strided),
        a_col=given[a_col],
        b_strides=(0, b_given[0], b_given[1]),
        c_strides=(*c_rows, c_given[c_col]),
        row_dims=dims,
        col_dim=c_col,
        batch_dims=batch,
        a_dims=(batch, dims, a_col),
        constant=e.constant(b) is not None,
    )


def _matmul(e: Emission, parts: Parts) -> Problem:
    main = parts.main
    (x, w), shape = main.inputs[:2], main.outputs[0].type.shape
    if x.type.rank < 2 or w.type.rank < 2:
        raise Unsupported("a product with a vector")
    a, rank = source(parts, x), len(shape)
    given, c_given, b_given = e.view(a).strides, e.view(parts.outputs[0]).strides, e.view(w).strides
    k, n = known(x.type.shape[-1], shape[-1])
    batch, wanted = tuple(range(rank - 2)), shape[:-2]
    a_rank = x.type.rank
    return Problem(
        parts=parts,
        a=a,
        b=w,
        bias=None,
        m=shape[-2],
        n=n,
        k=k,
        batch=product(wanted),
        a_batch=one(x.type.shape[:-2], given[:-2], wanted),
        a_rows=Rows(given[-2]),
        a_col=given[-1],
        b_strides=(one(w.type.shape[:-2], b_given[:-2], wanted), b_given[-1], b_given[-2]),
        c_strides=(one(wanted, c_given[:-2]), c_given[-2], c_given[-1]),
        row_dims=(rank - 2,),
        col_dim=rank - 1,
        batch_dims=batch,
        a_dims=(tuple(range(a_rank - 2)), (a_rank - 2,), a_rank - 1),
        constant=e.constant(w) is not None,
    )


def known(k: Dim, n: Dim) -> tuple[int, int]:
    if not isinstance(n, int) or not isinstance(k, int):
        raise Unsupported(f"a product with {n} columns over {k}; both must be known")
    return k, n


def source(parts: Parts, x: Value) -> Value:
    """The tensor that the kernel loads as A: what the nodes before the product start from."""
    if not parts.before:
        return x
    if parts.before[-1].outputs[0] is not x:
        raise Unsupported("what comes before the product does not end at its first operand")
    current = x
    producers = {v: n for n in parts.before for v in n.outputs}
    while current in producers:
        wide = [v for v in producers[current].inputs if v.type.shape == x.type.shape]
        if not wide:
            raise Unsupported("what comes before the product has no operand of its shape")
        current = wide[0]
    return current


def one(sizes: Sequence[Dim], strides: Sequence[Dim], wanted: Shape | None = None) -> Dim:
    """One stride that counts all the dimensions row-major. Raises Unsupported where there is none."""
    if wanted is not None and (len(sizes) != len(wanted) or not all(map(same, sizes, wanted))):
        if all(same(s, 1) for s in sizes):
            return 0
        raise Unsupported(f"a batch of {tuple(sizes)} broadcast to {wanted}")
    levels = merged(sizes, strides)
    if len(levels) > 1:
        raise Unsupported(f"strides {tuple(strides)} of sizes {tuple(sizes)} are not those of one dimension")
    return levels[0][1] if levels else 0


def rows_of(sizes: Sequence[Dim], strides: Sequence[Dim]) -> Rows:
    """How rows that count those dimensions row-major are found. Raises Unsupported for more than two levels."""
    levels = merged(sizes, strides)
    if not levels:
        return Rows(0)
    inner, stride = levels[-1]
    if len(levels) == 1:
        return Rows(stride)
    if len(levels) > 2 or not isinstance(inner, int):
        raise Unsupported(
            f"strides {tuple(strides)} of sizes {tuple(sizes)} are not those of two dimensions with a known inner one"
        )
    return Rows(stride, levels[0][1], inner)


def merged(sizes: Sequence[Dim], strides: Sequence[Dim]) -> list[tuple[Dim, Dim]]:
    """(size, stride) of as few dimensions as can say the same, outermost first; sizes of 1 are left out."""
    levels: list[tuple[Dim, Dim]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if same(size, 1):
            continue
        if levels and same(levels[-1][1], size * stride):
            levels[-1] = (product((levels[-1][0], size)), stride)
        else:
            levels.append((size, stride))
    return levels


# ---- hooks ----------------------------------------------------------------------------------------------------------------

EPILOGUE_PARAMETERS = ("acc", "batch", "row0", "rows", "cols", "row_mask", "col_mask")
PROLOGUE_PARAMETERS = ("x", "batch", "row0", "rows", "ks", "row_mask", "k_mask")


def epilogue_of(e: Emission, p: Problem, writer: HookWriter, block_m: int, block_n: int) -> Hook:
    """The bias and what follows the product, over `acc`. writer: gets the operands; it may have lines already."""
    _epilogue(p, writer, block_m, block_n)
    return writer.hook("epilogue", EPILOGUE_PARAMETERS, [writer.names[p.output]])


def early_epilogue_of(e: Emission, p: Problem, writer: HookWriter, block_m: int, block_n: int) -> tuple[Hook | None, Hook]:
    """The same in two: what loads its operands, which may run before the product, and what computes; see `early_hook`."""
    _epilogue(p, writer, block_m, block_n)
    return writer.early_hook("epilogue", EPILOGUE_PARAMETERS, [writer.names[p.output]])


def _epilogue(p: Problem, writer: HookWriter, block_m: int, block_n: int) -> None:
    space = _space(p.main.type.shape, p.batch_dims, p.row_dims, p.col_dim, "cols", p, block_m, block_n, writer)
    writer.names[p.main] = "acc"
    if p.bias is not None:
        columns = Space((p.n,), (("cols", (0,)),), tuple(m for m in space.masks or () if m[0] == "cols"))
        writer.lines.append(f"acc = acc + {writer.load(p.bias, columns)}")
    writer.compute(p.parts.after, space)


def prologue_of(e: Emission, p: Problem, writer: HookWriter, block_m: int, k_part: int) -> Hook | None:
    """What comes before the product, over `x`. writer: the epilogue's, whose operands it shares. k_part: what a block sums of K."""
    if not p.parts.before:
        return None
    before = HookWriter(e.views, e.constant, writer.operands, writer.sizes)
    before.names[p.a] = "x"
    batch, rows, k = p.a_dims
    x = p.parts.main.inputs[0]
    before.compute(p.parts.before, _space(x.type.shape, batch, rows, k, "ks", p, block_m, k_part, before))
    return before.hook("prologue", PROLOGUE_PARAMETERS, [before.names[x]])


def _space(
    shape: Shape,
    batch: tuple[int, ...],
    rows: tuple[int, ...],
    inner: int,
    name: str,
    p: Problem,
    block_m: int,
    block_inner: int,
    writer: HookWriter,
) -> Space:
    """Rows, columns and batch over a shape. Where a block stays in one picture, what depends on the picture alone is read once."""
    size = shape[inner]
    row_mask = "" if isinstance(p.m, int) and p.m % block_m == 0 else "row_mask"
    inner_mask = "" if isinstance(size, int) and size % block_inner == 0 else "k_mask" if name == "ks" else "col_mask"
    indices = [("batch", batch), (name, (inner,))]
    masks = [("batch", ""), (name, inner_mask)]
    pixels = product([shape[d] for d in rows[1:]])
    if isinstance(pixels, int) and pixels > 1 and pixels % block_m == 0 and not same(shape[rows[0]], 1):
        writer.places.append(f"picture = row0 // {pixels}")
        writer.places.append(f"pixels = rows - picture * {pixels}")
        indices += [("picture", rows[:1]), ("pixels", rows[1:])]
        masks += [("picture", ""), ("pixels", row_mask)]
    else:
        indices += [("rows", rows)]
        masks += [("rows", row_mask)]
    return Space(shape, tuple((t, d) for t, d in indices if d), tuple(masks))
